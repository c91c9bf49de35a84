//! What somebody may have meant: the nearest of the names that there are.

use crate::options::distance;

/// Ends a message: `; did you mean 'x'?`, or all there is to choose from if nothing is near, or nothing if there is nothing.
pub fn did_you_mean<'a>(name: &str, candidates: impl Iterator<Item = &'a str> + Clone) -> String {
    match nearest(name, candidates.clone()) {
        Some(near) => format!("; did you mean '{near}'?"),
        None => {
            let mut all: Vec<&str> = candidates.collect();
            all.sort_unstable();
            all.dedup();
            match all.len() {
                0 => String::new(),
                1 => format!("; there is {}", all.concat()),
                2..=40 => format!("; there are {}", all.join(", ")),
                _ => "; '-help' shows what there is".to_owned(),
            }
        }
    }
}

/// The candidate with the least edit distance, if not more than half of it would have to change.
fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    // Of two that are equally near, the one as long as what was written: letters are swapped more often than forgotten.
    let rank = |candidate: &'a str| {
        (distance(&name, &candidate.to_lowercase()), name.len().abs_diff(candidate.len()), candidate)
    };
    let near = candidates.map(rank).min();
    near.filter(|(distance, _, candidate)| *distance <= candidate.len() / 2)
        .map(|(_, _, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_guessed() {
        assert_eq!(did_you_mean("drvie", ["device", "drive"].into_iter()), "; did you mean 'drive'?");
    }

    #[test]
    fn what_is_like_nothing_is_answered_with_what_there_is() {
        assert_eq!(did_you_mean("frobnicate", ["vde", "user"].into_iter()), "; there are user, vde");
        assert_eq!(did_you_mean("x", [].into_iter()), "");
    }
}
