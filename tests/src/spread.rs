//! What a few measurements of the same thing have in common. It knows nothing of what was measured.

/// Median, smallest and largest of a few numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The smallest.
    pub least: f64,
    /// The one in the middle, or the mean of the two there.
    pub median: f64,
    /// The largest.
    pub most: f64,
}

impl Spread {
    /// The spread of `values`.
    pub fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len();
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let median = (at(count.saturating_sub(1) / 2) + at(count / 2)) / 2.0;
        Spread { least: at(0), median, most: at(count.saturating_sub(1)) }
    }

    /// How many times `other`'s median its own is, as tables have it: `-` where that says nothing, as of a time below zero, which comes of
    /// a difference of two.
    pub fn ratio(self, other: Spread) -> String {
        if self.median >= 0.0 && other.median > 0.0 {
            return format!("{:.2}", self.median / other.median);
        }
        "-".to_owned()
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ({:.2} to {:.2})", self.median, self.least, self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_an_even_number_is_the_mean_of_the_middle_two() {
        assert_eq!(
            Spread::of([4.0, 1.0, 2.0, 10.0].into_iter()),
            Spread { least: 1.0, median: 3.0, most: 10.0 }
        );
    }

    #[test]
    fn median_of_an_odd_number_is_the_middle_one() {
        assert_eq!(Spread::of([9.0, 1.0, 2.0].into_iter()).median, 2.0);
    }

    #[test]
    fn ratio_to_nothing_measured_is_a_dash() {
        let nothing = Spread::of(std::iter::empty());
        assert_eq!(Spread::of([1.0].into_iter()).ratio(nothing), "-");
    }
}
