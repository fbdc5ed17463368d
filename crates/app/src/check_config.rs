//! `ethhook check-config`.

use ethhook_domain::Profile;
use ethhook_domain::event::stream_name;

use crate::config::{self, Config, Inputs, Invalid};
use crate::{Exit, output};

/// Prints the configuration, or everything that is wrong with it.
pub(crate) fn run(inputs: &Inputs) -> Result<Exit, Invalid> {
    let config = Config::load(inputs)?;
    let mut text: String = config.resolved.iter().map(|resolved| format!("{resolved}\n")).collect();
    for chain in &config.chains {
        let Profile { name, chain_id, block_time, finality_depth, .. } = &chain.profile;
        let stream = stream_name(*chain_id);
        text += &format!(
            "# {name}: chain id {chain_id}, stream {stream}, a block every {block_time:?}, \
             final {finality_depth} blocks below the head\n"
        );
    }
    for chain in &config.off {
        let chain = chain.to_uppercase();
        text += &format!("# {chain} is off: {chain}_WS_URL and {chain}_HTTP_URL are not set\n");
    }
    output::text(&text);
    Ok(Exit::Done)
}

/// Prints every key with its default.
pub(crate) fn example() -> Exit {
    output::text(&config::example());
    Exit::Done
}
