//! The short form of the fault campaign; the long one is `scripts/chaos.sh`.

use std::path::PathBuf;
use std::time::Duration;

use ethhook_simulator::Mischief;
use ethhook_testkit::campaign::{self, Part, Plan, Share, Tally, What};
use futures_util::future::join_all;

async fn run(what: What, share: Share) -> Tally {
    let plan = Plan {
        program: PathBuf::from(env!("CARGO_BIN_EXE_ethhook")),
        seed: 20_250_101,
        what,
        share,
        fail_points: false, // the binary under test is the released one
        print_actions: false,
    };
    let tally = campaign::run(&plan).await;
    println!("{tally}");
    assert!(tally.failure.is_empty(), "{}", tally.failure);
    tally
}

#[tokio::test(flavor = "multi_thread")]
async fn g1_to_g5_and_g11_faults_of_all_kinds_leave_stream_and_chain_equal_and_secrets_unseen() {
    let tally = run(What::Mixed(Duration::from_secs(40)), Share::ALL).await;
    assert!(tally.rounds >= 2 && tally.events_compared > 100, "hardly anything was tried");
    assert!(tally.faults.len() >= 10, "hardly any kind was tried: {:?}", tally.faults);
    assert!(tally.bytes_without_secrets > 100_000, "hardly anything was searched");
}

/// A few repetitions of each quick part. Fail points are not compiled in here, and the soak is left to a full run.
#[tokio::test(flavor = "multi_thread")]
async fn g1_to_g5_and_g10_a_bit_of_each_part_leaves_stream_and_chain_equal() {
    let some = [
        ("kill", 4),
        ("sigterm", 2),
        ("redis-everysec", 2),
        ("redis-always", 2),
        ("redis-cut", 2),
        ("redis-full", 1),
        ("reorg", 6),
        ("below-finalized", 1),
        ("takeover", 1),
        ("sentinel", 1),
        ("cluster", 1),
    ];
    for (name, count) in some {
        let tally = run(What::Part(Part::named(name).unwrap(), count), Share::ALL).await;
        assert_eq!(tally.faults.values().sum::<u64>(), count, "{name}");
        assert!(tally.events_compared > 0, "{name}: nothing was compared");
        assert!(name != "reorg" || tally.removed_entries > 0, "nothing was taken back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g1_to_g6_each_fault_of_providers_alone_leaves_stream_and_chain_equal() {
    let each_once = What::Part(Part::named("provider").unwrap(), 1);
    let shares = (0..4).map(|index| run(each_once, Share { index, of: 4 }));
    let tallies = join_all(shares).await;
    let played = |kind| tallies.iter().any(|tally| tally.wrongs_of_the_node.contains_key(kind));
    let missed: Vec<_> = Mischief::kinds().filter(|kind| !played(*kind)).collect();
    assert!(missed.is_empty(), "never played: {missed:?}");
}
