//! The model: the contract's rules for a step and for the resulting state of Redis, as a few maps.

use std::collections::BTreeSet;

use alloy_primitives::B256;
use ethhook_domain::{Cursor, Op};
use ethhook_streams::{Outcome, StepError};

use crate::chain::{Block, block, hash};

/// The block at `path`, one letter per height: the same path is the same block.
pub(super) fn at(path: &str) -> Block {
    let count = path.bytes().map(u64::from).sum::<u64>() % 4;
    let parent = path.get(..path.len().saturating_sub(1)).unwrap_or_default();
    block(&name(path), &name(parent), count)
}

pub(super) fn name(path: &str) -> String {
    format!("{}{path}", path.len())
}

pub(super) fn hash_at(path: &str) -> Option<B256> {
    (!path.is_empty()).then(|| hash(&name(path)))
}

/// The answer to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Published,
    Duplicate,
    Moved,
    Fenced,
    Alarmed,
    Refused,
    Inconsistent,
}

impl Verdict {
    pub(super) fn of(result: &Result<Outcome, StepError>) -> Self {
        match result {
            Ok(Outcome::Published { .. }) => Self::Published,
            Ok(Outcome::Duplicate { .. }) => Self::Duplicate,
            Err(StepError::Moved { .. }) => Self::Moved,
            Err(StepError::Fenced { .. }) => Self::Fenced,
            Err(StepError::Alarmed(_)) => Self::Alarmed,
            Err(StepError::Refused(_)) => Self::Refused,
            Err(StepError::Inconsistent(_)) => Self::Inconsistent,
            Err(other) => panic!("{other}"),
        }
    }
}

/// A step in terms of the model.
#[derive(Debug, Clone)]
pub(super) enum Move {
    Add(String),
    Remove(String),
    Finalize(String),
    Gap(String),
    Alarm(&'static str),
    Retreat(String),
}

impl Move {
    pub(super) fn op(&self) -> Option<Op> {
        match self {
            Self::Add(_) => Some(Op::Add),
            Self::Remove(_) => Some(Op::Remove),
            Self::Finalize(_) | Self::Retreat(_) => Some(Op::Finalized),
            Self::Gap(_) => Some(Op::Gap),
            Self::Alarm(_) => None,
        }
    }

    pub(super) fn path(&self) -> &str {
        match self {
            Self::Add(path) | Self::Remove(path) | Self::Finalize(path) => path,
            Self::Gap(path) | Self::Retreat(path) => path,
            Self::Alarm(_) => "",
        }
    }

    /// The cursor after this step.
    pub(super) fn after(&self, cursor: &mut Cursor) {
        let path = self.path();
        let number = path.len() as u64;
        match self {
            Self::Add(_) | Self::Gap(_) => {
                (cursor.number, cursor.hash) = (number, hash_at(path));
            }
            Self::Remove(_) => {
                (cursor.number, cursor.hash) = (number - 1, hash_at(&path[..path.len() - 1]));
            }
            Self::Finalize(_) | Self::Retreat(_) => {
                (cursor.finalized_number, cursor.finalized_hash) = (number, hash_at(path));
                if matches!(self, Self::Retreat(_)) {
                    cursor.alarm.clear();
                }
            }
            Self::Alarm(text) => {
                (*text).clone_into(&mut cursor.alarm);
                return;
            }
        }
        cursor.seq += 1;
    }
}

/// What Redis should hold.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    pub(super) cursor: Option<Cursor>,
    pub(super) lease: Option<&'static str>,
    /// The tip's path, including skipped blocks.
    pub(super) tip: String,
    /// One entry each: block, `log_index`, and whether it is taken back.
    pub(super) events: Vec<(String, u64, bool)>,
    pub(super) markers: Vec<(u64, Op, String)>,
    pub(super) seen: BTreeSet<String>,
    /// An operator has moved finality back.
    pub(super) retreated: bool,
}

impl Model {
    pub(super) fn open(&mut self, writer: &'static str, first: Cursor) -> Result<Cursor, ()> {
        if self.lease.is_some_and(|owner| owner != writer) {
            return Err(());
        }
        let cursor = self.cursor.get_or_insert(first);
        cursor.epoch += 1;
        writer.clone_into(&mut cursor.writer);
        self.lease = Some(writer);
        Ok(cursor.clone())
    }

    /// Whether the step with this `seq` is in.
    pub(super) fn holds_seq(&self, seq: u64) -> bool {
        self.cursor.as_ref().is_some_and(|held| held.seq >= seq)
    }

    /// Whether `believed` still owns the chain.
    pub(super) fn is_owner(&self, believed: &Cursor) -> bool {
        let held = self.cursor.as_ref().map(|held| (&held.writer, held.epoch));
        held == Some((&believed.writer, believed.epoch))
    }

    /// The contract's rules for a step (G5 first), and its effect.
    pub(super) fn step(&mut self, believed: &Cursor, step: &Move) -> Verdict {
        let Some(held) = self.cursor.clone() else { return Verdict::Moved };
        if !self.is_owner(believed) {
            return Verdict::Fenced;
        }
        let in_place = (held.seq, held.hash) == (believed.seq, believed.hash);
        let moved = if in_place { None } else { Some(Verdict::Moved) };
        if !matches!(step, Move::Alarm(_)) {
            if !matches!(step, Move::Retreat(_)) && !held.alarm.is_empty() {
                return Verdict::Alarmed;
            }
            // The step was applied before, and the answer lost.
            let newest = self.markers.last();
            let same = newest.is_some_and(|(seq, op, path)| {
                (*seq, Some(*op), path.as_str()) == (believed.seq + 1, step.op(), step.path())
            });
            if same && held.seq == believed.seq + 1 {
                return Verdict::Published;
            }
        }
        if let Move::Add(path) = step
            && let Some(verdict) = self.duplicate(path, in_place)
        {
            return verdict;
        }
        if let Some(verdict) = moved.or_else(|| self.refused(&held, step)) {
            return verdict;
        }
        self.take(step);
        Verdict::Published
    }

    pub(super) fn duplicate(&self, path: &str, in_place: bool) -> Option<Verdict> {
        let on_tip = self.tip.is_empty() || path[..path.len() - 1] == self.tip;
        if self.seen.contains(path) {
            let contradiction = in_place && on_tip;
            return Some(if contradiction { Verdict::Inconsistent } else { Verdict::Duplicate });
        }
        (in_place && path == self.tip).then_some(Verdict::Duplicate)
    }

    pub(super) fn refused(&self, held: &Cursor, step: &Move) -> Option<Verdict> {
        let (path, number) = (step.path(), step.path().len() as u64);
        let finalized = held.finalized_hash.map(|hash| (held.finalized_number, hash));
        let is_final = finalized.is_some_and(|(height, _)| number <= height);
        let fits = match step {
            Move::Add(_) => path[..path.len() - 1] == self.tip,
            Move::Remove(_) => path == self.tip && !is_final,
            Move::Finalize(_) if finalized == hash_at(path).map(|hash| (number, hash)) => {
                return Some(Verdict::Duplicate);
            }
            Move::Finalize(_) => number <= self.tip.len() as u64 && !is_final,
            Move::Gap(_) => path.len() > self.tip.len(),
            Move::Retreat(_) => !held.alarm.is_empty() && is_final,
            Move::Alarm(_) => true,
        };
        (!fits).then_some(Verdict::Refused)
    }

    pub(super) fn take(&mut self, step: &Move) {
        let Some(cursor) = &mut self.cursor else { return };
        step.after(cursor);
        let seq = cursor.seq;
        let path = step.path().to_owned();
        let count = at(&path).events.len() as u64;
        match step {
            Move::Add(_) => {
                self.events.extend((0..count).map(|index| (path.clone(), index, false)));
                if count > 0 {
                    self.seen.insert(path.clone());
                }
                self.tip.clone_from(&path);
            }
            Move::Remove(_) => {
                self.events.extend((0..count).rev().map(|index| (path.clone(), index, true)));
                self.seen.remove(&path);
                self.tip.pop();
            }
            Move::Gap(_) => self.tip.clone_from(&path),
            Move::Retreat(_) => self.retreated = true,
            Move::Finalize(_) | Move::Alarm(_) => {}
        }
        if let Some(op) = step.op() {
            self.markers.push((seq, op, path));
        }
    }
}
