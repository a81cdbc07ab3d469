//! A fake of NVIDIA's API: the upstream that scripts/run and the end-to-end tests put after Envoy. It answers as
//! NVIDIA does, throttles as NVIDIA may, fails in the ways a request asks for, and records exactly what reached it.
//!
//! - `limiter` and `gate`: who gets a 429
//! - `openai`, `behaviour`, `answer`: what is answered, and how
//! - `connection`, `server`: sockets and the way of a request
//! - `record`, `control`: what the tests see

mod answer;
mod behaviour;
mod connection;
mod control;
mod gate;
mod limiter;
mod openai;
mod record;
mod server;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use lexopt::prelude::*;
use tokio::signal::unix::{SignalKind, signal};

use crate::gate::Config;
use crate::limiter::Kind;
use crate::server::App;

const USAGE: &str = "\
fake-nvidia: a stand-in for NVIDIA's API

    --listen ADDRESS       127.0.0.1:10080; port 0 takes a free one
    --limiter KIND         none (default), token-bucket, fixed-window or sliding-window
    --rpm N                requests per minute, 40
    --burst N              capacity of the token bucket, 4
    --window-s N           length of the windows, 60
    --latency-ms N         wait before each answer, 150
    --retry-after TEXT     send Retry-After with each 429; not sent by default, as NVIDIA doesn't
    --verbose              one line per metered request: seconds since the start, priority, status, model
";

struct Options {
    listen: String,
    verbose: bool,
    config: Config,
}

/// `None` when only the usage was asked for.
fn options() -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options { listen: "127.0.0.1:10080".to_owned(), verbose: false, config: Config::default() };
    let config = &mut options.config;
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("listen") => options.listen = parser.value()?.string()?,
            Long("limiter") => config.limiter = parser.value()?.parse_with(kind)?,
            Long("rpm") => config.rpm = parser.value()?.parse()?,
            Long("burst") => config.burst = parser.value()?.parse()?,
            Long("window-s") => config.window_s = parser.value()?.parse()?,
            Long("latency-ms") => config.latency_ms = parser.value()?.parse()?,
            Long("retry-after") => config.retry_after = Some(parser.value()?.string()?),
            Long("verbose") => options.verbose = true,
            Long("help") | Short('h') => return Ok(None),
            _ => return Err(argument.unexpected()),
        }
    }
    options.config.check()?;
    Ok(Some(options))
}

fn kind(text: &str) -> Result<Kind, String> {
    match text {
        "none" => Ok(Kind::None),
        "token-bucket" => Ok(Kind::TokenBucket),
        "fixed-window" => Ok(Kind::FixedWindow),
        "sliding-window" => Ok(Kind::SlidingWindow),
        _ => Err("must be none, token-bucket, fixed-window or sliding-window".to_owned()),
    }
}

async fn run(options: Options) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = server::listen(&options.listen).await?;
    let address = listener.local_addr()?;
    writeln!(io::stdout(), "fake-nvidia listening on {address}")?;
    let app = Arc::new(App::new(options.config, options.verbose));
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    server::serve(app, listener, stop).await;
    Ok(())
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("fake-nvidia: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let listen = options.listen.clone();
    let outcome = tokio::runtime::Builder::new_multi_thread().enable_all().build().and_then(|runtime| {
        let outcome = runtime.block_on(run(options));
        // Requests that hang on purpose are not waited for.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fake-nvidia: {listen}: {error}");
            ExitCode::FAILURE
        }
    }
}
