//! Compresses the dashboard's files, so that the module carries and serves them as they are.
//!
//! The script and the style each get the charts' library in front (`src/console/page/vendor/`, as its authors publish it,
//! licence included). The same files give the same bytes on every machine.

use flate2::{Compression, GzBuilder};
use std::io::{self, Write};
use std::path::Path;
use std::{env, fs};

const PAGE: &str = "src/console/page";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed={PAGE}");
    let out = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo sets no OUT_DIR"))?;
    for (name, parts) in [
        ("index.html", &["index.html"][..]),
        ("app.js", &["vendor/uPlot.iife.min.js", "draw.js", "samples.js", "form.js", "app.js"]),
        ("app.css", &["vendor/uPlot.min.css", "app.css"]),
    ] {
        let mut file = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
        for part in parts {
            file.write_all(&fs::read(Path::new(PAGE).join(part))?)?;
            file.write_all(b"\n")?;
        }
        fs::write(Path::new(&out).join(format!("{name}.gz")), file.finish()?)?;
    }
    Ok(())
}
