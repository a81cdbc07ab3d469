//! Root contexts: one for each plugin configuration. They take up the configuration, tick, and make streams.

use super::console::{Panel, Visit};
use super::host::{self, Buffer};
use super::http::Http;
use super::logging::{self, event, event_once};
use super::stream::{BodyView, Plugin, Stream};
use super::worker;
use nimgate_config::{Config, KeySource, without_quotes};
use nimgate_core::units::{Instant, WorkerId};
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::ContextType;
use std::cell::Cell;
use std::rc::Rc;

/// A root context.
pub struct Root {
    id: u32,
    plugin: Option<Rc<Plugin>>,
    /// In place of the plugin where this is the console.
    panel: Option<Rc<Panel>>,
}

impl Root {
    /// The root context with this number, not configured yet.
    pub fn new(id: u32) -> Self {
        worker::with(|worker| worker.root_created(id));
        Self { id, plugin: None, panel: None }
    }

    fn configure(&mut self, json: &[u8]) -> Result<(), String> {
        let config = Config::parse(json).map_err(|error| error.to_string())?;
        logging::set_level(config.log_level);
        if let Some(console) = config.console {
            self.panel = Some(Rc::new(Panel::new(console)));
            event_once!(info, "console_configured", "version": env!("CARGO_PKG_VERSION"));
            return Ok(());
        }
        let keys: Vec<Option<String>> = config.limits.iter().map(|limit| key(&limit.name, &limit.key)).collect();
        let context = self.id;
        let names: Vec<&str> = config.limits.iter().map(|limit| limit.name.as_str()).collect();
        event_once!(info, "configured", "limits": names, "version": env!("CARGO_PKG_VERSION"));
        self.plugin = worker::with(|worker| {
            worker.configure(config, |config, limits| Plugin {
                context,
                config,
                limits,
                keys,
                body_view: Cell::new(BodyView::Unknown),
                try_again_at: Cell::new(Instant::ZERO),
            })
        });
        match self.plugin {
            Some(_) => Ok(()),
            None => Err("a fault in nimgate kept it from taking up the configuration; report it".to_owned()),
        }
    }
}

/// The upstream's key of a limit. A variable that is not set is said in the log, and the limit works without a key, so
/// that the same configuration serves where no key is needed.
fn key(limit: &str, source: &KeySource) -> Option<String> {
    match source {
        KeySource::Client => None,
        KeySource::Inline(key) => Some(key.clone()),
        KeySource::Env(name) => {
            let value = host::environment(name).map(|value| without_quotes(value.trim()).to_owned());
            let usable = value.filter(|value| !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic()));
            if usable.is_none() {
                event_once!(
                    warn,
                    "key_missing",
                    "limit": limit,
                    "variable": name,
                    "message": "the environment variable of upstream_api_key_env is not set, or holds no usable key; \
                                requests keep the client's authorization. Set it for Envoy and list it in vm_config's \
                                environment_variables.host_env_keys",
                );
            }
            usable
        }
    }
}

impl Context for Root {
    fn on_done(&mut self) -> bool {
        // The context may have to stay, but its configuration is out of use, but for the streams that it still has.
        self.plugin = None;
        self.panel = None;
        worker::with(|worker| worker.root_done(self.id)).unwrap_or(true)
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        let json = host::buffer(Buffer::PluginConfiguration, 0, size).unwrap_or_default();
        match self.configure(&json) {
            Ok(()) => true,
            Err(problem) => {
                event!(
                    error,
                    "configuration_refused",
                    "problem": problem,
                    "message": "nimgate refuses this configuration, and Envoy keeps the one it had. Correct the field that \
                                `problem` names and push it again; README.md lists all fields",
                );
                worker::with(|worker| worker.metrics.refused());
                false
            }
        }
    }

    fn on_tick(&mut self) {
        worker::with(|worker| worker.wake(false, host::begin(self.id)));
    }

    fn on_queue_ready(&mut self, queue: u32) {
        // The host calls this for each message. Several may have piled up, and the first call has answered them all.
        let (mut is_woken, mut is_suspect) = (false, false);
        for _ in 0..MESSAGES_MAX {
            match host::dequeue(queue) {
                Ok(Some(message)) => is_suspect |= message == host::Message::WakeOfVersion1,
                Ok(None) => break,
                // What the message says is not known, but there was one.
                Err(_) => {
                    is_woken = true;
                    break;
                }
            }
            is_woken = true;
        }
        if !is_woken {
            return;
        }
        worker::with(|worker| {
            if is_suspect {
                worker.suspect();
            }
            worker.woken_as(WorkerId(queue));
            worker.wake(true, host::begin(self.id));
        });
    }

    fn create_http_context(&self, id: u32) -> Option<Box<dyn HttpContext>> {
        if let Some(panel) = &self.panel {
            return Some(Box::new(Visit::new(Rc::clone(panel))));
        }
        let stream = self.plugin.as_ref().map(|plugin| Rc::new(Stream::new(id, Rc::clone(plugin))));
        Some(Box::new(Http::new(stream)))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

/// The most messages taken from the wake-up queue at once, so that a flood of them can't hold the worker.
const MESSAGES_MAX: usize = 1_024;
