//! The binary `ethhook`; the library of the same name is all of it.

use std::process::ExitCode;

fn main() -> ExitCode {
    ethhook::main()
}
