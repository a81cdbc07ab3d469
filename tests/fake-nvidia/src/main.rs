//! A stand-in for NVIDIA's API: OpenAI-compatible answers behind a real limit with real 429s, faults on demand, and a
//! record of all that was received. `scripts/run` starts it when there is no key, and the end-to-end tests check in its
//! record what reached the upstream.

mod behaviour;
mod control;
mod limiter;
mod openai;
mod record;
mod server;

use control::Config;
use hyper_util::rt::{TokioExecutor, TokioIo};
use lexopt::prelude::*;
use limiter::Kind;
use server::{Server, State};
use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::net::TcpListener;

const HELP: &str = "\
fake-nvidia: a stand-in for NVIDIA's API

  --listen ADDRESS       where to listen (127.0.0.1:10080; port 0 takes a free one)
  --limiter KIND         none, token-bucket, fixed-window or sliding-window (none)
  --rpm N                requests per minute that the limiter lets in (40)
  --burst N              size of the token bucket (4)
  --window-s N           length of the windows in seconds (60)
  --latency-ms N         time before each answer (0)
  --retry-after TEXT     Retry-After of 429s (none)
  --verbose              one line on standard output for each request
";

struct Options {
    listen: String,
    verbose: bool,
    config: Config,
}

fn options() -> Result<Options, Box<dyn Error>> {
    let mut options = Options {
        listen: "127.0.0.1:10080".to_owned(),
        verbose: false,
        config: Config::default(),
    };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        let config = &mut options.config;
        match argument {
            Long("listen") => options.listen = arguments.value()?.string()?,
            Long("limiter") => {
                config.limiter = match arguments.value()?.string()?.as_str() {
                    "none" => Kind::None,
                    "token-bucket" => Kind::TokenBucket,
                    "fixed-window" => Kind::FixedWindow,
                    "sliding-window" => Kind::SlidingWindow,
                    other => return Err(format!("--limiter: {other} is no kind of limiter").into()),
                }
            }
            Long("rpm") => config.rpm = arguments.value()?.parse()?,
            Long("burst") => config.burst = arguments.value()?.parse()?,
            Long("window-s") => config.window_s = arguments.value()?.parse()?,
            Long("latency-ms") => config.latency_ms = arguments.value()?.parse()?,
            Long("retry-after") => config.retry_after = Some(arguments.value()?.string()?),
            Long("verbose") => options.verbose = true,
            Long("help") | Short('h') => {
                print!("{HELP}");
                std::process::exit(0);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(options)
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = options()?;
    let listener = TcpListener::bind(&options.listen)
        .await
        .map_err(|error| format!("can't listen on {}: {error}", options.listen))?;
    println!("fake-nvidia listening on {}", listener.local_addr()?);
    let server = Arc::new(Server {
        started: Instant::now(),
        verbose: options.verbose,
        record: record::Record::default(),
        state: Mutex::new(State {
            config: options.config,
            ..State::default()
        }),
    });
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Out of file descriptors, say; the next one may fare better.
                let Ok((connection, _)) = accepted else { continue };
                let _ = connection.set_nodelay(true);
                let server = Arc::clone(&server);
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| Arc::clone(&server).answer(request));
                    // Errors are peers that went away and connections broken off on purpose.
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(connection), service)
                        .await;
                });
            }
            _ = terminated.recv() => return Ok(()),
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}
