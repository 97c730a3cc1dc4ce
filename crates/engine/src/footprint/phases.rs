//! When the operators of a plan hold memory: before their first row, and while they give rows.

/// Bytes that an operator and all below it hold at the most.
///
/// A sort gives its first row when its input has ended, so what its input held is free by then; a filter gives
/// rows while its input does. Adding up all operators of a plan would make a plan of ten joins look as if it
/// read ten tables at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Phases {
    /// Until the first row is given.
    pub(super) filling: u64,
    /// From then on.
    pub(super) giving: u64,
}

impl Phases {
    /// The most at any time.
    pub(super) fn peak(self) -> u64 {
        self.filling.max(self.giving)
    }

    /// An operator without inputs.
    pub(super) fn leaf(own: u64) -> Self {
        Self { filling: 0, giving: own }
    }

    /// An operator that passes on the rows of one input as they come.
    pub(super) fn passing(self, own: u64) -> Self {
        Self { filling: self.filling, giving: self.giving.saturating_add(own) }
    }

    /// An operator that takes all of its input before it gives anything.
    pub(super) fn blocking(self, own: u64) -> Self {
        Self { filling: self.filling.max(self.giving.saturating_add(own)), giving: own }
    }

    /// An operator over several inputs, each of which goes at its own pace.
    pub(super) fn side_by_side(inputs: impl IntoIterator<Item = Self>, own: u64) -> Self {
        let inputs = inputs.into_iter().fold(0, |sum: u64, input| sum.saturating_add(input.peak()));
        Self { filling: inputs, giving: inputs.saturating_add(own) }
    }

    /// A join that takes all of `self`, and keeps `own` of it while `probe` passes.
    pub(super) fn building(self, own: u64, probe: Self) -> Self {
        let build = self.filling.max(self.giving.saturating_add(own));
        Self { filling: build.max(own.saturating_add(probe.filling)), giving: own.saturating_add(probe.giving) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phases(filling: u64, giving: u64) -> Phases {
        Phases { filling, giving }
    }

    #[test]
    fn what_is_held_at_the_same_time_adds_up() {
        let scan = Phases::leaf(10);
        assert_eq!(scan.passing(1), phases(0, 11));
        assert_eq!(scan.blocking(5), phases(15, 5));
        assert_eq!(scan.blocking(5).blocking(5), phases(15, 5), "the scan is over when the second one fills");
        assert_eq!(Phases::side_by_side([scan, scan.blocking(5)], 1), phases(25, 26));
        assert_eq!(scan.building(100, Phases::leaf(20)), phases(110, 120), "one side is read after the other");
        assert_eq!(scan.building(100, Phases::leaf(20).blocking(7)), phases(127, 107));
        assert_eq!(phases(u64::MAX, 1).building(u64::MAX, phases(1, u64::MAX)).peak(), u64::MAX);
    }
}
