//! Compresses the dashboard's files, so that the module carries and serves them as they are.
//!
//! The script begins with the table of knobs, from which the form is made. The script and the style each get the charts' library in front (`page/vendor/`, as its authors publish it,
//! licence included). The same files give the same bytes on every machine.

use flate2::{Compression, GzBuilder};
use nimgate_core::limit::rules::{Kind, Rules, Value, knobs};
use std::io::{self, Write};
use std::path::Path;
use std::{env, fs};

const PAGE: &str = "page";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed={PAGE}");
    let out = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo sets no OUT_DIR"))?;
    for (name, parts) in [
        ("index.html", &["index.html"][..]),
        ("app.js", &["vendor/uPlot.iife.min.js", "draw.js", "samples.js", "form.js", "app.js"]),
        ("app.css", &["vendor/uPlot.min.css", "app.css"]),
    ] {
        let mut file = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
        if name == "app.js" {
            file.write_all(form_fields().as_bytes())?;
        }
        for part in parts {
            file.write_all(&fs::read(Path::new(PAGE).join(part))?)?;
            file.write_all(b"\n")?;
        }
        fs::write(Path::new(&out).join(format!("{name}.gz")), file.finish()?)?;
    }
    Ok(())
}

/// For each knob its path, its name in the form, its choices with the default first, and whether it is a switch.
fn form_fields() -> String {
    let mut script = String::from("const KNOBS = [\n");
    for knob in knobs() {
        let choices: Vec<&str> = match (knob.kind, knob.value(&Rules::DEFAULT)) {
            (Kind::Switch, Value::Switch(true)) => vec!["on", "off"],
            (Kind::Switch, _) => vec!["off", "on"],
            (Kind::Choice(words), _) => words.to_vec(),
            (Kind::Number(_), _) => Vec::new(),
        };
        let is_switch = knob.kind == Kind::Switch;
        script += &format!("[{:?}, {:?}, {choices:?}, {is_switch}],\n", knob.path, knob.label);
    }
    script + "];\n"
}
