//! Plans that live within their memory.
//!
//! | module | its story |
//! |---|---|
//! | `joins` | hash joins whose build side will not fit become joins that spill |
//! | `kept` | keeps projections from being pushed through a merge join |
//! | `size` | how many bytes a plan is thought to give, and how many at most |
//! | `windows` | window functions hold one of their partitions at a time, and say so |
//! | `running` | window functions that run along with their rows keep those that they look at |
//! | `topk` | first rows that are too many to keep become a sort that spills |
//! | `compact` | slices of large batches are copied before they are kept |
//! | `collected` | ordered collections take their values from a sort |
//! | `distinct` | distinct counts reserve what they hold, and give it back when they spill |
//! | `careful` | what a careful attempt changes before operators are chosen |
//! | `apart` | distinct counts of a whole table, one after the other |
//! | `not_in` | `NOT IN` as a join that spills, and a look at NULLs |
//! | `counted` | the distinct values of all groups in one table |
//! | `slices` | large aggregates sort what they spill a slice at a time |

mod apart;
mod careful;
mod collected;
mod compact;
mod counted;
mod distinct;
mod joins;
mod kept;
mod not_in;
mod running;
mod size;
mod slices;
#[cfg(test)]
mod testing;
mod topk;
mod windows;

use std::sync::Arc;

use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;

pub(crate) use careful::{careful_logical, is_steady};
pub(crate) use compact::{compact, copy};
pub(crate) use running::RunningWindowExec;
pub(crate) use slices::SlicesExec;
pub(crate) use windows::WindowByPartitionExec;

use crate::hidden::hidden_option;

/// What a query is planned to fit into: an extension of the options it is planned with. Without it plans
/// stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fit {
    /// Bytes the query may hold.
    pub(crate) room: usize,
    /// What it is likely to hold of them, as many as want some.
    pub(crate) share: usize,
    /// Trust no estimate: the query has run out of memory before.
    pub(crate) careful: bool,
}

hidden_option!(Fit, "updraft_fit");

/// DataFusion's rules, and those that make a plan fit.
pub(crate) fn rules() -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
    let mut rules = PhysicalOptimizer::new().rules;
    let after = |rules: &[Arc<dyn PhysicalOptimizerRule + Send + Sync>], name| {
        let at = rules.iter().rposition(|rule| rule.name() == name);
        at.expect("DataFusion has this rule") + 1
    };
    // When sides are chosen, and before the sorts and exchanges are put in that a merge join needs.
    rules.insert(after(&rules, "join_selection"), Arc::new(joins::FitJoins));
    // Above and below of what it puts in, exchanges are then put in as they are needed.
    rules.insert(after(&rules, "EnsureRequirements") - 1, Arc::new(crate::dense::DenseAggregates));
    // The sorts that are left may tell their scan what comes first.
    rules.insert(after(&rules, "PushdownSort") - 1, Arc::new(updraft_hot::InOrder));
    rules.insert(after(&rules, "ProjectionPushdown"), Arc::new(kept::Release));
    rules.push(Arc::new(collected::CollectSorted));
    rules.push(Arc::new(distinct::CountTogether));
    rules.push(Arc::new(windows::ByPartition));
    rules.push(Arc::new(running::RunAlong));
    rules.push(Arc::new(topk::FitTopK));
    rules.push(Arc::new(slices::SliceAggregates::default()));
    rules.push(Arc::new(compact::Compact));
    rules.push(Arc::new(updraft_hot::LoadOnce));
    rules
}
