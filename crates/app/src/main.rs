//! The binary `ethhook`; the library of the same name is all of it.

use std::process::ExitCode;

/// A quarter of the time went into glibc's, which keeps more memory as well: docs/performance.md.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    ethhook::main()
}
