//! G2 to G5 and G10 as a property: in whatever order writers open, publish, take back, finalize,
//! skip, lose their lease, wake up late and restart, and whatever Redis loses in the meantime, a
//! model of a few maps and a real Redis agree on the answer to each step, on both streams, on the
//! dedup records, the lease and the cursor.
//!
//! `ETHHOOK_MODEL_CASES` gives the number of cases, `ETHHOOK_MODEL_SEED` repeats a run.

use std::collections::HashMap;
use std::time::Duration;

use ethhook_domain::fold::{Fold, Problem};
use ethhook_domain::{BlockRef, Cursor, Encoding, EntryId, Proof};
use ethhook_streams::{OpenError, Outcome, PublishedBlock, Publisher, Step, WriterOptions};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use crate::chain::{Block, CHAIN, DEDUP_TTL, Fixture, first, hash};

mod rules;

use rules::{Model, Move, Verdict, at, hash_at, name};

const CASES: u32 = 48;
/// The model has no time: leases expire when it says so.
const LEASE_TTL: Duration = Duration::from_secs(3_600);
/// The names of the writers: the third is a process under the first one's name.
const NAMES: [&str; 3] = ["one", "two", "one"];
/// Represents a skipped block in a path.
const SKIPPED: char = 'z';

/// One event of a test case. `w` is a writer.
#[derive(Debug, Clone)]
enum Act {
    /// Takes the lease and reads the cursor: a start, a restart or a takeover.
    Open(usize),
    Release(usize),
    Renew(usize),
    LeaseExpires,
    /// The writer's epoch is current again, as if it had never lost the chain and had itself done
    /// what others did since. Its next step is then one that arrives late or is sent again.
    Wake(usize),
    Add(usize, On, char),
    Remove(usize),
    Finalize(usize, usize),
    Gap(usize, usize),
    Alarm(usize),
    ClearAlarm(usize),
    Retreat(usize, usize),
    /// A dedup record expires.
    RecordExpires(usize),
    Save,
    /// Redis returns to the last saved state: it lost its latest writes.
    Rollback,
    /// Redis is empty.
    Wipe,
}

/// Where a block is added, relative to the writer's tip.
#[derive(Debug, Clone, Copy)]
enum On {
    Tip,
    /// The tip itself again.
    Again,
    /// A sibling of the tip.
    Parent,
    /// A block that leaves a gap.
    Far,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let w = 0..NAMES.len();
    let letter = || prop::sample::select(vec!['a', 'b']);
    let act = prop_oneof![
        6 => w.clone().prop_map(Act::Open),
        1 => w.clone().prop_map(Act::Release),
        1 => w.clone().prop_map(Act::Renew),
        2 => Just(Act::LeaseExpires),
        3 => w.clone().prop_map(Act::Wake),
        18 => (w.clone(), letter()).prop_map(|(w, l)| Act::Add(w, On::Tip, l)),
        2 => (w.clone(), letter()).prop_map(|(w, l)| Act::Add(w, On::Again, l)),
        2 => (w.clone(), letter()).prop_map(|(w, l)| Act::Add(w, On::Parent, l)),
        1 => (w.clone(), letter()).prop_map(|(w, l)| Act::Add(w, On::Far, l)),
        8 => w.clone().prop_map(Act::Remove),
        2 => (w.clone(), 0..3_usize).prop_map(|(w, back)| Act::Finalize(w, back)),
        1 => (w.clone(), 1..3_usize).prop_map(|(w, skip)| Act::Gap(w, skip)),
        1 => w.clone().prop_map(Act::Alarm),
        2 => w.clone().prop_map(Act::ClearAlarm),
        1 => (w.clone(), 0..4_usize).prop_map(|(w, back)| Act::Retreat(w, back)),
        1 => (0..8_usize).prop_map(Act::RecordExpires),
        2 => Just(Act::Save),
        2 => Just(Act::Rollback),
        1 => Just(Act::Wipe),
    ];
    // Most cases begin with a writer that can make progress.
    prop::collection::vec(act, 5..60).prop_map(|mut acts| {
        acts.insert(0, Act::Open(0));
        acts
    })
}

/// A process that is a writer, or believes to be.
struct Writer {
    publisher: Publisher,
    /// What the writer believes according to the model, and the path of its tip.
    believed: Cursor,
    tip: String,
}

/// A key, and its content from DUMP.
type Dumped = (Vec<u8>, Vec<u8>);

struct World<'a> {
    redis: &'a mut Fixture,
    encoding: Encoding,
    model: Model,
    writers: [Option<Writer>; NAMES.len()],
    /// Blocks as they were last published, by path.
    published: HashMap<String, PublishedBlock>,
    saved: Option<(Model, Vec<Dumped>)>,
    /// The highest entry ID so far; meaningful only while no writer was woken.
    highest: Option<EntryId>,
    woken: bool,
}

impl World<'_> {
    async fn act(&mut self, act: &Act) -> Result<(), TestCaseError> {
        match *act {
            Act::Open(w) => return self.open(w).await,
            Act::Release(w) => {
                let Some(writer) = &mut self.writers[w] else { return Ok(()) };
                writer.publisher.release().await;
                if self.model.lease == Some(NAMES[w]) && self.model.is_owner(&writer.believed) {
                    self.model.lease = None;
                }
            }
            Act::Renew(w) => {
                let Some(writer) = &mut self.writers[w] else { return Ok(()) };
                let renewed = writer.publisher.renew().await.is_ok();
                let ours = self.model.lease.is_none_or(|owner| owner == NAMES[w]);
                let expected = ours
                    && self.model.is_owner(&writer.believed)
                    && self.model.holds_seq(writer.believed.seq);
                prop_assert_eq!(renewed, expected, "renewal");
                if renewed {
                    self.model.lease = Some(NAMES[w]);
                }
            }
            Act::LeaseExpires => {
                self.redis.ask::<i64>("DEL lease:{events:7}").await;
                self.model.lease = None;
            }
            Act::Wake(w) => self.wake(w).await,
            Act::RecordExpires(nth) => {
                if let Some(path) = self.model.seen.iter().nth(nth).cloned() {
                    let key = self.redis.keys.seen(hash(&name(&path)));
                    self.redis.ask::<i64>(&format!("DEL {key}")).await;
                    self.model.seen.remove(&path);
                }
            }
            Act::Save => self.saved = Some((self.model.clone(), dump(self.redis).await)),
            Act::Rollback => {
                if let Some((model, keys)) = self.saved.clone() {
                    self.redis.ask::<String>("FLUSHALL").await;
                    restore(self.redis, &keys).await;
                    self.model = model;
                }
            }
            Act::Wipe => {
                self.redis.ask::<String>("FLUSHALL").await;
                self.model = Model::default();
            }
            _ => return self.step(act).await,
        }
        Ok(())
    }

    async fn open(&mut self, w: usize) -> Result<(), TestCaseError> {
        let (streams, name) = (&self.redis.streams, NAMES[w]);
        let (encoding, ttl) = (self.encoding, (LEASE_TTL, DEDUP_TTL));
        let first = first().encoded(encoding);
        let opened = Publisher::open(
            streams,
            CHAIN,
            WriterOptions {
                writer: name.to_owned(),
                lease_ttl: ttl.0,
                dedup_ttl: ttl.1,
                encoding: Some(encoding),
            },
            Some(first.clone()),
        );
        match (opened.await, self.model.open(NAMES[w], first)) {
            (Ok(publisher), Ok(believed)) => {
                let tip = self.model.tip.clone();
                self.writers[w] = Some(Writer { publisher, believed, tip });
                Ok(())
            }
            (Err(OpenError::LeaseHeld(_)), Err(())) => Ok(()),
            (opened, expected) => {
                Err(TestCaseError::fail(format!("open: {opened:?}, expected {expected:?}")))
            }
        }
    }

    async fn wake(&mut self, w: usize) {
        let Some((writer, held)) = self.writers[w].as_ref().zip(self.model.cursor.as_mut()) else {
            return;
        };
        held.epoch = writer.believed.epoch;
        held.writer.clone_from(&writer.believed.writer);
        let (epoch, name) = (held.epoch.to_string(), held.writer.clone());
        self.redis.raw_hset("cursor:{events:7}", "epoch", &epoch).await;
        self.redis.raw_hset("cursor:{events:7}", "writer", &name).await;
        self.woken = true;
    }

    async fn step(&mut self, act: &Act) -> Result<(), TestCaseError> {
        let Some((w, step)) = self.plan(act) else { return Ok(()) };
        let Some(writer) = &mut self.writers[w] else { return Ok(()) };
        let subject = at(step.path());
        let reversed = subject.reversed();
        let unpublished = as_published(&subject);
        let published = self.published.get(step.path()).unwrap_or(&unpublished);
        let link: BlockRef = subject.link;
        let asked = match &step {
            Move::Add(_) => subject.add(),
            Move::Remove(_) => Step::Remove { block: published, events: &reversed },
            Move::Finalize(_) => Step::Finalized { block: &link },
            Move::Gap(_) => Step::Gap { block: &link },
            Move::Alarm(text) => Step::Alarm { text },
            Move::Retreat(_) => Step::Retreat { to: (&link).into() },
        };
        let result = writer.publisher.apply(&asked).await;
        let before = self.model.events.len();
        let expected = self.model.step(&writer.believed, &step);
        prop_assert_eq!(Verdict::of(&result), expected, "{:?}: {:?}", step, result);
        if expected == Verdict::Published {
            step.after(&mut writer.believed);
            match &step {
                Move::Add(path) | Move::Gap(path) => writer.tip.clone_from(path),
                Move::Remove(path) => path[..path.len() - 1].clone_into(&mut writer.tip),
                _ => {}
            }
        }
        prop_assert_eq!(writer.publisher.cursor(), &writer.believed, "what the writer believes");
        if let (Ok(Outcome::Published { first_id, last_id, events, .. }), Move::Add(path)) =
            (&result, &step)
        {
            let (first_id, last_id, events) = (*first_id, *last_id, *events);
            let as_added = PublishedBlock { events, first_id, last_id, ..unpublished };
            self.published.insert(path.clone(), as_added);
        }
        if let Ok(Outcome::Published { first_id, last_id, .. }) = &result
            && self.model.events.len() > before
        {
            // Readers with a saved ID would miss entries below it.
            let above = self.woken || self.highest < *first_id;
            prop_assert!(above, "{:?} is not above {:?}", first_id, self.highest);
            self.highest = self.highest.max(Some(*last_id));
        }
        Ok(())
    }

    /// The step for `act` from its writer's point of view; none if that has no block to start from.
    fn plan(&self, act: &Act) -> Option<(usize, Move)> {
        let tip = |w: usize| self.writers[w].as_ref().map(|writer| writer.tip.clone());
        let lower = |w: usize, back: usize| {
            let tip = tip(w)?;
            let length = tip.len().checked_sub(back)?;
            // A skipped block inside a gap is not in the stream.
            let ends_gap = !tip[length..].starts_with(SKIPPED);
            (length > 0 && ends_gap).then(|| tip[..length].to_owned())
        };
        match *act {
            Act::Add(w, on, letter) => {
                let tip = tip(w)?;
                let path = match on {
                    On::Tip => format!("{tip}{letter}"),
                    On::Again => tip,
                    On::Parent => format!("{}{letter}", &tip[..tip.len().checked_sub(1)?]),
                    On::Far => format!("{tip}a{letter}"),
                };
                (!path.is_empty() && !path.ends_with(SKIPPED)).then_some((w, Move::Add(path)))
            }
            Act::Remove(w) => {
                let tip = tip(w)?;
                let is_block = !tip.is_empty() && !tip.ends_with(SKIPPED);
                is_block.then_some((w, Move::Remove(tip)))
            }
            Act::Finalize(w, back) => Some((w, Move::Finalize(lower(w, back)?))),
            Act::Retreat(w, back) => Some((w, Move::Retreat(lower(w, back)?))),
            Act::Gap(w, skip) => {
                let skipped = SKIPPED.to_string().repeat(skip);
                Some((w, Move::Gap(format!("{}{skipped}", tip(w)?))))
            }
            Act::Alarm(w) => tip(w).map(|_| (w, Move::Alarm("a reorg below the finalized block"))),
            Act::ClearAlarm(w) => tip(w).map(|_| (w, Move::Alarm(""))),
            _ => None,
        }
    }

    /// Compares everything in Redis with the model.
    async fn compare(&mut self) -> Result<(), TestCaseError> {
        let redis = &mut *self.redis;
        let cursor = redis.streams.cursor(CHAIN).await.unwrap();
        prop_assert_eq!(&cursor, &self.model.cursor, "cursor");
        let lease: Option<String> = redis.ask("GET lease:{events:7}").await;
        prop_assert_eq!(lease.as_deref(), self.model.lease, "lease");
        let mut seen: Vec<String> = redis.ask("KEYS seen:*").await;
        let expected = self.model.seen.iter().map(|path| redis.keys.seen(hash(&name(path))));
        let mut expected: Vec<_> = expected.collect();
        seen.sort();
        expected.sort();
        prop_assert_eq!(seen, expected, "dedup records");

        let events = redis.events().await;
        prop_assert_eq!(events.len(), self.model.events.len(), "entries");
        for ((entry, event), (path, index, removed)) in events.iter().zip(&self.model.events) {
            let position = usize::try_from(*index).unwrap();
            let mut expected = at(path).events[position].clone();
            expected.removed = *removed;
            prop_assert_eq!(event, &expected, "entry {}", entry);
        }
        let markers = redis.streams.markers(CHAIN, EntryId::MIN, 100_000).await.unwrap();
        let found: Vec<_> = markers.iter().map(|(_, m)| (m.seq, m.op, m.hash)).collect();
        let expected = self.model.markers.iter().map(|(seq, op, path)| (*seq, *op, path));
        let expected: Vec<_> = expected.map(|(s, op, path)| (s, op, hash(&name(path)))).collect();
        prop_assert_eq!(found, expected, "markers");

        // The checker's fold, which is independent of the model, finds the same chain and no
        // violation.
        let mut fold = Fold::from_start(CHAIN);
        events.iter().for_each(|(entry, event)| fold.entry(*entry, event.clone()));
        markers.iter().for_each(|(entry, marker)| fold.marker(*entry, marker));
        fold.finish();
        let by_order = [Problem::Finalized, Problem::BelowFinalized];
        let faults = fold.violations().iter();
        let faults = faults.filter(|v| !(self.model.retreated && by_order.contains(&v.problem)));
        prop_assert_eq!(faults.count(), 0, "{:?}", fold.violations());
        let tip = fold.canonical().last().map(|block| block.hash);
        prop_assert_eq!(tip, hash_at(&self.model.tip), "the folded tip");
        Ok(())
    }
}

fn as_published(block: &Block) -> PublishedBlock {
    let events = block.events.len() as u64;
    let (first_id, last_id) = (None, EntryId::MIN);
    PublishedBlock { block: block.link, events, first_id, last_id, proof: Proof::ReceiptsRoot }
}

async fn dump(redis: &mut Fixture) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut keys = Vec::new();
    for key in redis.ask::<Vec<Vec<u8>>>("KEYS *").await {
        let mut command = redis::cmd("DUMP");
        command.arg(&key);
        let value: Vec<u8> = command.query_async(&mut redis.raw).await.unwrap();
        keys.push((key, value));
    }
    keys
}

async fn restore(redis: &mut Fixture, keys: &[(Vec<u8>, Vec<u8>)]) {
    for (key, value) in keys {
        let mut command = redis::cmd("RESTORE");
        command.arg(key).arg(0).arg(value);
        command.exec_async(&mut redis.raw).await.unwrap();
    }
}

async fn run(redis: &mut Fixture, packed: bool, acts: &[Act]) -> Result<(), TestCaseError> {
    redis.ask::<String>("FLUSHALL").await;
    redis.forget();
    let mut world = World {
        redis,
        encoding: if packed { Encoding::Msgpack } else { Encoding::Fields },
        model: Model::default(),
        writers: [None, None, None],
        published: HashMap::new(),
        saved: None,
        highest: None,
        woken: false,
    };
    for act in acts {
        world.act(act).await?;
        world.compare().await?;
    }
    Ok(())
}

fn number_from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn g2_to_g5_and_g10_a_model_and_redis_agree_whatever_writers_do() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut redis = runtime.block_on(Fixture::new());
    let cases =
        number_from_env("ETHHOOK_MODEL_CASES").map_or(CASES, |cases| u32::try_from(cases).unwrap());
    let seed = number_from_env("ETHHOOK_MODEL_SEED")
        .unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_secs());
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config =
        Config { cases, max_shrink_iters: 400, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, rng);
    println!("{cases} cases; ETHHOOK_MODEL_SEED={seed} repeats them");
    let redis = std::cell::RefCell::new(&mut redis);
    let result = runner.run(&(any::<bool>(), acts()), |(packed, acts)| {
        runtime.block_on(run(&mut redis.borrow_mut(), packed, &acts))
    });
    if let Err(error) = result {
        panic!("ETHHOOK_MODEL_SEED={seed}: {error}");
    }
}
