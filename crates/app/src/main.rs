//! The binary `ethhook`; all of its code is in the library of the same name.

use std::process::ExitCode;

/// glibc's allocator took a quarter of the time, and keeps more memory: docs/performance.md.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    ethhook::main()
}
