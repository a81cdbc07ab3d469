"""Checks what a wasm module imports, and how large it is.

    check_wasm.py core MODULE      the core alone: it must import nothing at all
    check_wasm.py filter MODULE    the filter: only proxy-wasm ABI 0.2.1 and the WASI calls that Envoy offers

Reads the module by itself, so that nothing need be installed.
"""

import sys
from pathlib import Path

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

# Every worker compiles the module; past this size something came in that does not belong.
SIZE_MAX = 750_000

# With nothing dropped and no optimisation the core has some megabytes.
CORE_SIZE_MIN = 1_000_000


def main() -> None:
    kind, path = sys.argv[1], Path(sys.argv[2])
    module = path.read_bytes()
    found = imports(module)
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
        if len(module) > SIZE_MAX:
            sys.exit(f"the module has {len(module)} bytes, more than {SIZE_MAX}")
    print(f"{kind}: {len(module)} bytes, {len(found)} imports, all as they should be")


def imports(module: bytes) -> set[tuple[str, str]]:
    """The namespaces and names in the module's import section."""
    if module[:8] != b"\0asm\x01\0\0\0":
        sys.exit("this is no wasm module of version 1")
    at = 8
    while at < len(module):
        section = module[at]
        size, at = number(module, at + 1)
        if section == 2:
            return set(entries(module, at))
        at += size
    return set()


def entries(module: bytes, at: int):
    count, at = number(module, at)
    for _ in range(count):
        namespace, at = text(module, at)
        name, at = text(module, at)
        kind = module[at]
        if kind == 0:  # A function: the number of its type.
            _, at = number(module, at + 1)
        elif kind == 1:  # A table: its element type and limits.
            at = limits(module, at + 2)
        elif kind == 2:  # A memory: its limits.
            at = limits(module, at + 1)
        else:  # A global: its type and whether it changes.
            at += 3
        yield namespace, name


def limits(module: bytes, at: int) -> int:
    bounded = module[at] & 1
    _, at = number(module, at + 1)
    return number(module, at)[1] if bounded else at


def text(module: bytes, at: int) -> tuple[str, int]:
    size, at = number(module, at)
    return module[at : at + size].decode(), at + size


def number(module: bytes, at: int) -> tuple[int, int]:
    """An unsigned LEB128 number and the place behind it."""
    value = shift = 0
    while True:
        byte = module[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


if __name__ == "__main__":
    main()
