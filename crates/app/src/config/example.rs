//! Generates `.env.example` from the table of keys.

use std::fmt::Write;

use ethhook_domain::Profile;

use super::keys::{self, FILE_SUFFIX, Key};

/// The content of `.env.example` and output of `ethhook check-config --example`: every key,
/// commented out, with its default.
pub(crate) fn render() -> String {
    let mut text = String::from(
        "# EthHook's configuration. Copy this file to .env and uncomment what you set; keys that\n\
         # are not set have the value shown. The environment overrides .env, and .env overrides\n\
         # ethhook.toml, where the same keys are written in lower case.\n\
         #\n\
         # Put a value with spaces, quotes, # or $ in single quotes. `ethhook check-config` shows\n\
         # the resulting values and where each came from.\n\
         \n\
         # ---- Chains. A chain is on if its WS_URL or HTTP_URL is set.\n",
    );
    for profile in Profile::built_in() {
        let chain = profile.name.to_uppercase();
        let _ = writeln!(text, "\n# {chain}: chain id {}", profile.chain_id);
        for key in keys::CHAIN.iter().filter(|key| key.secret) {
            let _ = writeln!(text, "#{chain}_{}=", key.name);
        }
    }
    text.push_str(
        "\n# Any other chain: [chains.NAME] in ethhook.toml with its chain_id; its keys may then be\n\
         # set here too.\n\
         \n\
         # ---- Keys of a chain, here of ETHEREUM; the same for each name above.\n",
    );
    for key in keys::CHAIN {
        let _ = write!(text, "\n{}", comment(key.help));
        if key.secret {
            let _ = writeln!(text, "# Or the path of a file that contains it:");
            let _ = writeln!(text, "#ETHEREUM_{}{FILE_SUFFIX}=", key.name);
        } else {
            let _ = writeln!(text, "#ETHEREUM_{}={}", key.name, key.default);
        }
    }
    text.push_str("\n# ---- Keys of the process.\n");
    for key in keys::GLOBAL {
        let _ = write!(text, "\n{}{}", comment(key.help), assignment(key));
    }
    text.push_str("\n# ---- For Docker Compose, which also reads this file.\n");
    for key in keys::COMPOSE {
        let _ = write!(text, "\n{}{}", comment(key.help), assignment(key));
    }
    text
}

/// The help as lines of a comment.
pub(super) fn comment(help: &str) -> String {
    help.lines().map(|line| format!("# {line}\n")).collect()
}

fn assignment(key: &Key) -> String {
    let mut text = format!("#{}={}\n", key.name, key.default);
    if key.secret {
        let _ = writeln!(text, "# Or the path of a file that contains it:");
        let _ = writeln!(text, "#{}{FILE_SUFFIX}=", key.name);
    }
    text
}
