//! The short form of the fault campaign; the long one is `scripts/chaos.sh`.

use std::path::PathBuf;
use std::time::Duration;

use ethhook_testkit::campaign::{self, Plan};

#[tokio::test(flavor = "multi_thread")]
async fn g1_to_g5_and_g11_a_minute_of_faults_leaves_stream_and_chain_equal_and_secrets_unseen() {
    let plan = Plan {
        program: PathBuf::from(env!("CARGO_BIN_EXE_ethhook")),
        seed: 20_250_101,
        duration: Duration::from_secs(60),
        fail_points: false, // the binary under test is the one that users get
        print_actions: false,
    };
    let tally = campaign::run(&plan).await;
    println!("{tally}");
    assert!(tally.failure.is_empty(), "{}", tally.failure);
    assert!(tally.rounds >= 2 && tally.events_compared > 100, "hardly anything was tried");
    assert!(tally.bytes_without_secrets > 100_000, "hardly anything was searched");
}
