//! `ethhook check-config`.

use std::io::Write;

use ethhook_domain::Profile;
use ethhook_domain::event::stream_name;

use crate::config::{self, Config, Inputs, Problem};
use crate::{Exit, tell};

/// Prints the configuration, or everything that is wrong with it.
pub(crate) fn run(inputs: Result<Inputs, Vec<Problem>>) -> Exit {
    let config = inputs.and_then(|inputs| Config::load(&inputs).map_err(|e| e.problems));
    match config {
        Ok(config) => {
            let mut text: String =
                config.resolved.iter().map(|resolved| format!("{resolved}\n")).collect();
            for chain in &config.chains {
                let Profile { name, chain_id, .. } = &chain.profile;
                let stream = stream_name(*chain_id);
                text += &format!("# {name}: chain id {chain_id}, stream {stream}\n");
            }
            for chain in &config.off {
                let chain = chain.to_uppercase();
                text +=
                    &format!("# {chain} is off: {chain}_WS_URL and {chain}_HTTP_URL are not set\n");
            }
            print(&text)
        }
        Err(problems) => {
            tell(&problems);
            Exit::BadConfiguration
        }
    }
}

/// Prints every key with its default.
pub(crate) fn example() -> Exit {
    print(&config::example())
}

/// A reader that has gone away, as `head` does, is no failure.
fn print(text: &str) -> Exit {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Exit::Done,
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Exit::Done,
        Err(_) => Exit::Failed,
    }
}
