//! One Wasm VM: the module in a store of its own, and the callbacks that Envoy would make.

use crate::host::{Deferred, Frame, Host, counting_linker, linker};
use crate::world::World;
use std::collections::BTreeMap;
use std::rc::Rc;
use wasmtime::{
    Config, Engine, Instance, InstancePre, Linker, Module, OptLevel, Result, Store, WasmParams, WasmResults,
};

/// The module, compiled once for all VMs of all runs.
pub struct Machine {
    engine: Engine,
    pre: InstancePre<Host>,
}

impl Machine {
    /// Compiles the module.
    ///
    /// # Errors
    /// When it is no module, or imports what can't be linked.
    pub fn new(wasm: &[u8]) -> Result<Self> {
        Self::with(wasm, linker)
    }

    /// The same, with VMs that count their host calls.
    ///
    /// # Errors
    /// As above.
    pub fn counting(wasm: &[u8]) -> Result<Self> {
        Self::with(wasm, counting_linker)
    }

    /// The same, with host calls of the caller's own.
    ///
    /// # Errors
    /// As above.
    pub fn with(wasm: &[u8], linker: impl FnOnce(&Engine, &Module) -> Result<Linker<Host>>) -> Result<Self> {
        let mut config = Config::new();
        config.cranelift_opt_level(OptLevel::Speed);
        let engine = Engine::new(&config)?;
        let module = Module::new(&engine, wasm)?;
        let pre = linker(&engine, &module)?.instantiate_pre(&module)?;
        Ok(Self { engine, pre })
    }
}

/// A VM.
pub struct Vm {
    store: Store<Host>,
    instance: Instance,
}

impl Vm {
    /// A new VM in the place `vm`.
    pub fn new(machine: &Machine, world: &Rc<World>, vm: usize) -> Result<Self> {
        let host = Host {
            world: Rc::clone(world),
            vm,
            memory: None,
            malloc: None,
            frame: Frame::default(),
            calls: BTreeMap::new(),
        };
        let mut store = Store::new(&machine.engine, host);
        let instance = machine.pre.instantiate(&mut store)?;
        let memory = instance.get_memory(&mut store, "memory");
        let malloc = instance
            .get_typed_func(&mut store, "proxy_on_memory_allocate")
            .or_else(|_| instance.get_typed_func(&mut store, "malloc"))?;
        store.data_mut().memory = memory;
        store.data_mut().malloc = Some(malloc);
        let mut made = Self { store, instance };
        if world.planted > 0 {
            made.call::<u32, ()>("nimgate_planted", 0, world.planted)?;
        }
        made.call::<(), ()>("_initialize", 0, ())?;
        Ok(made)
    }

    /// Whether the module exports a function of this name.
    pub fn exports(&mut self, name: &str) -> bool {
        self.instance.get_func(&mut self.store, name).is_some()
    }

    /// Makes a callback on `context`.
    pub fn call<P: WasmParams, R: WasmResults>(&mut self, name: &str, context: u32, with: P) -> Result<R> {
        let asks = matches!(
            name,
            "proxy_on_request_headers"
                | "proxy_on_request_body"
                | "proxy_on_request_trailers"
                | "proxy_on_tick"
                | "proxy_on_queue_ready"
        );
        let host = self.store.data();
        let publishes = asks && !host.world.state.borrow().visits.contains_key(&(host.vm, context));
        let frame = Frame { real: context, effective: context, publishes, ..Frame::default() };
        self.store.data_mut().frame = frame;
        let function = self.instance.get_typed_func::<P, R>(&mut self.store, name)?;
        function.call(&mut self.store, with)
    }

    /// The running or last callback.
    pub fn frame(&self) -> &Frame {
        &self.store.data().frame
    }

    /// The host calls since the last time that this was asked, if they are counted.
    pub fn host_calls(&mut self) -> BTreeMap<String, u32> {
        std::mem::take(&mut self.store.data_mut().calls)
    }

    /// What the last callback asked for.
    pub fn deferred(&mut self) -> Vec<Deferred> {
        std::mem::take(&mut self.store.data_mut().frame.deferred)
    }
}
