"""Checks what a wasm module imports, and how large it is.

    check_wasm.py core MODULE      the core alone: it must import nothing at all
    check_wasm.py filter MODULE    the filter: only proxy-wasm ABI 0.2.1 and the WASI calls that Envoy offers, and no export
                                   but those in filter/wasm/exports.txt

wasmtime reads the module, and refuses one that is not valid.
"""

import sys
from pathlib import Path

import wasmtime

# The host functions of proxy-wasm ABI 0.2.1 (https://github.com/proxy-wasm/spec).
ABI_NAMES = """
    log get_log_level get_current_time_nanoseconds get_property set_property get_buffer_bytes set_buffer_bytes
    get_buffer_status get_header_map_pairs set_header_map_pairs get_header_map_size get_header_map_value
    add_header_map_value replace_header_map_value remove_header_map_value continue_stream close_stream
    send_local_response http_call grpc_call grpc_stream grpc_send grpc_cancel grpc_close get_status
    set_tick_period_milliseconds set_effective_context done define_metric record_metric increment_metric get_metric
    get_shared_data set_shared_data register_shared_queue resolve_shared_queue enqueue_shared_queue
    dequeue_shared_queue call_foreign_function
"""
ABI = {f"proxy_{name}" for name in ABI_NAMES.split()}

# The calls of WASI that the filter may make; Envoy offers each of them to every module.
WASI = {"clock_time_get", "environ_get", "environ_sizes_get"}

EXPORTS = Path(__file__).resolve().parents[2] / "filter/wasm/exports.txt"

# Every worker compiles the module; past this size something came in that does not belong.
SIZE_MAX = 1_000_000

# With nothing dropped and no optimisation the core has some megabytes.
CORE_SIZE_MIN = 1_000_000


def main() -> None:
    kind, path = sys.argv[1], Path(sys.argv[2])
    module = path.read_bytes()
    read = wasmtime.Module(wasmtime.Engine(), module)
    found = {(one.module, one.name) for one in read.imports}
    if kind == "core":
        wrong = found
        if len(module) < CORE_SIZE_MIN:
            sys.exit(f"the module has {len(module)} bytes; the linker has dropped the core, so this proves nothing")
    else:
        allowed = {("env", name) for name in ABI} | {("wasi_snapshot_preview1", name) for name in WASI}
        wrong = found - allowed
    if wrong:
        listed = ", ".join(f"{namespace}.{name}" for namespace, name in sorted(wrong))
        sys.exit(f"the {kind} imports what it must not: {listed}")
    if kind == "filter":
        if ("env", "proxy_get_shared_data") not in found:
            sys.exit("the module imports no shared data; was it built without its shell?")
        exports, listed = {one.name for one in read.exports}, set(EXPORTS.read_text().split())
        if exports != listed:
            sys.exit(f"the module's exports and filter/wasm/exports.txt differ in {', '.join(sorted(exports ^ listed))}")
        if len(module) > SIZE_MAX:
            sys.exit(f"the module has {len(module)} bytes, more than {SIZE_MAX}")
    print(f"{kind}: {len(module)} bytes, {len(found)} imports, all as they should be")


if __name__ == "__main__":
    main()
