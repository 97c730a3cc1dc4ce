//! Filters that other operators make while the query runs: the keys of a join's other side, the worst of a TopK.
//!
//! None of them has to be obeyed, as the operator looks again itself. So one that lets nearly all rows through is not
//! asked for a while, and an error is no reason to fail.

use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::buffer::BooleanBuffer;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::DynamicFilterTracking;
use datafusion::physical_expr::split_conjunction;
use datafusion::physical_expr::utils::conjunction;
use datafusion::physical_expr_common::physical_expr::snapshot_physical_expr;
use datafusion::physical_optimizer::pruning::PruningPredicate;

use super::filter::{Conjunct, is_constant, narrowed};
use super::routed::together;
use super::rows::Rows;
use super::segments::pruning;

/// A filter that lets more of a block pass is hardly worth asking.
const WORTH: (usize, usize) = (3, 4);
/// Blocks for which such a filter is not asked again.
const PAUSE: u32 = 15;

/// The dynamic filters of a scan as one of its partitions sees them.
pub(super) struct Dynamic {
    filter: Arc<dyn PhysicalExpr>,
    tracking: DynamicFilterTracking,
    table: SchemaRef,
    needed: Arc<[usize]>,
    now: Vec<Asked>,
    pruning: Option<PruningPredicate>,
}

/// One predicate, and for how many blocks it is not to be asked.
struct Asked {
    conjunct: Conjunct,
    pause: u32,
}

impl Dynamic {
    /// `filters` over the columns of `table`; `None` when there are none.
    pub(super) fn new(filters: &[Arc<dyn PhysicalExpr>], table: &SchemaRef, needed: &Arc<[usize]>) -> Option<Self> {
        if filters.is_empty() {
            return None;
        }
        let filter = conjunction(filters.iter().cloned());
        // Watched first: what changes after that is seen as a change.
        let tracking = DynamicFilterTracking::classify(&filter);
        let (table, needed) = (table.clone(), needed.clone());
        let mut dynamic = Self { filter, tracking, table, needed, now: Vec::new(), pruning: None };
        dynamic.read();
        Some(dynamic)
    }

    /// What the filters say now. Whether that is something else than before.
    pub(super) fn refresh(&mut self) -> bool {
        let changed = self.tracking.watcher().is_some_and(|watcher| watcher.changed());
        if changed {
            self.read();
        }
        changed
    }

    fn read(&mut self) {
        self.now.clear();
        self.pruning = None;
        let Ok(filter) = snapshot_physical_expr(self.filter.clone()) else { return };
        let parts = split_conjunction(&filter).into_iter().flat_map(|part| together(part, &self.table));
        let parts: Vec<_> = parts.filter(|part| !is_constant(part, true)).collect();
        if parts.is_empty() {
            return;
        }
        let conjuncts = parts.iter().filter_map(|part| Conjunct::new(part, &self.table, &self.needed).ok());
        self.now = conjuncts.map(|conjunct| Asked { conjunct, pause: 0 }).collect();
        self.pruning = pruning(&self.table, conjunction(parts));
    }

    /// What tells the segments in which no row can pass.
    pub(super) fn pruning(&self) -> Option<&PruningPredicate> {
        self.pruning.as_ref()
    }

    /// `mask`, less rows of `block` that these filters leave out.
    pub(super) fn narrow(
        &mut self,
        rows: &Rows,
        block: &Range<usize>,
        mut mask: Option<BooleanBuffer>,
    ) -> Option<BooleanBuffer> {
        for asked in &mut self.now {
            if asked.pause > 0 {
                asked.pause -= 1;
                continue;
            }
            let count = |mask: &Option<BooleanBuffer>| mask.as_ref().map_or(block.len(), BooleanBuffer::count_set_bits);
            let before = count(&mask);
            if before == 0 {
                break;
            }
            match narrowed(&mut asked.conjunct, rows, block, mask.clone()) {
                Ok(narrower) => mask = narrower,
                Err(_) => {
                    asked.pause = u32::MAX;
                    continue;
                }
            }
            if count(&mask) * WORTH.1 > before * WORTH.0 {
                asked.pause = PAUSE;
            }
        }
        mask
    }
}
