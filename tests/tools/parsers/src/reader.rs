//! A parser in a process of its own, which is sent batches of bodies.

use std::io::{self, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// One of the parsers.
pub struct Reader {
    /// What to call it.
    pub name: String,
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

impl Reader {
    /// Starts a command given as `NAME=PROGRAM ARGUMENT...`.
    ///
    /// # Errors
    ///
    /// If it can't be started, with the command in the message.
    pub fn start(described: &str) -> Result<Self, String> {
        let (name, command) = described.split_once('=').ok_or(format!("{described:?} is not NAME=COMMAND"))?;
        let mut words = command.split_whitespace();
        let mut child = Command::new(words.next().unwrap_or_default())
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{command:?} can't be started: {error}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(format!("{command:?} has no standard input and output"));
        };
        Ok(Self { name: name.to_owned(), child, input, output })
    }

    /// Which of the bodies it reads as metered.
    ///
    /// # Errors
    ///
    /// If the process ends or closes its output.
    pub fn metered(&mut self, bodies: &[Vec<u8>]) -> io::Result<Vec<bool>> {
        let mut batch = Vec::new();
        for body in bodies {
            batch.extend(length(body)?);
            batch.extend(body);
        }
        self.input.write_all(&[length(bodies)?, length(&batch)?].concat())?;
        // It answers when it has read all, so nothing waits for anything in a circle.
        self.input.write_all(&batch)?;
        self.input.flush()?;
        let mut answers = vec![0; bodies.len()];
        self.output.read_exact(&mut answers)?;
        Ok(answers.iter().map(|answer| *answer == 1).collect())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn length<T>(of: &[T]) -> io::Result<[u8; 4]> {
    u32::try_from(of.len()).map(u32::to_le_bytes).map_err(io::Error::other)
}
