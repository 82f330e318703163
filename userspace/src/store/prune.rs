//! Chooses which images to remove: a pure function of what there is.

use std::time::Duration;

use super::Stored;

/// Which images are to go. What a rule keeps, no other removes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// The newest so many stay; without other rules, the others go.
    pub keep: Option<usize>,
    /// What is older goes.
    pub older_than: Option<Duration>,
    /// The oldest go until the rest is no larger, in bytes.
    pub max_bytes: Option<u64>,
    /// Images with a name go as well.
    pub named: bool,
}

/// What was chosen of the images of a store.
#[derive(Debug, PartialEq, Eq)]
pub struct Choice<'a> {
    /// Oldest first.
    pub removed: Vec<&'a Stored>,
    /// What remains, in bytes.
    pub rest_bytes: u64,
}

impl Rules {
    /// How many stay, if that is the only rule.
    pub fn only_keep(&self) -> Option<usize> {
        let is_only = self.older_than.is_none() && self.max_bytes.is_none();
        self.keep.filter(|_| is_only)
    }

    /// Chooses among images, which are given newest first. None goes that is in use.
    pub fn choose<'a>(
        &self,
        images: &'a [Stored],
        is_used: impl Fn(&Stored) -> bool,
        now_ms: u64,
    ) -> Choice<'a> {
        let is_old = |image: &Stored, limit: Duration| {
            let age = now_ms.saturating_sub(image.created_ms());
            Duration::from_millis(age) > limit
        };
        let mut choice = Choice {
            removed: vec![],
            // What a header says of an encrypted image is nothing that was verified.
            rest_bytes: images
                .iter()
                .map(Stored::bytes)
                .fold(0, u64::saturating_add),
        };
        let candidates = images.iter().skip(self.keep.unwrap_or(0));
        let candidates: Vec<&Stored> = candidates
            .filter(|image| (self.named || image.names().is_empty()) && !is_used(image))
            .rev()
            .collect();
        for image in candidates {
            let is_too_old = self.older_than.is_some_and(|limit| is_old(image, limit));
            let is_too_much = self.max_bytes.is_some_and(|most| choice.rest_bytes > most);
            if is_too_old || is_too_much || self.only_keep().is_some() {
                choice.rest_bytes = choice.rest_bytes.saturating_sub(image.bytes());
                choice.removed.push(image);
            }
        }
        choice
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Digest, Image, ImageFile, sample};

    /// Images of 10 bytes each, one made per second, newest first; `-` for one without a name.
    fn images(names: &[&str]) -> Vec<Stored> {
        let image = |(number, name): (usize, &&str)| {
            let mut manifest = sample(1000 * (names.len() - number) as u64);
            manifest.files = vec![ImageFile {
                name: "criu/pages-1.img".into(),
                bytes: 10,
                blake3: String::new(),
                link: None,
            }];
            Stored::Plain(Box::new(Image {
                digest: Digest::of(&number.to_le_bytes()),
                names: if *name == "-" {
                    vec![]
                } else {
                    vec![(*name).into()]
                },
                manifest,
                folder: "/nowhere".into(),
            }))
        };
        names.iter().enumerate().map(image).collect()
    }

    #[test]
    fn sizes_that_lie_remove_nothing_else() {
        let mut all = images(&["web", "-"]);
        for image in &mut all {
            if let Stored::Plain(image) = image {
                image.manifest.files[0].bytes = u64::MAX;
            }
        }
        let most = Rules {
            max_bytes: Some(30),
            ..Rules::default()
        };
        let choice = most.choose(&all, |_| false, 0);
        assert_eq!(choice.removed, [&all[1]]);
    }

    /// The places of the removed images, and what remains.
    fn choose(rules: Rules, names: &[&str]) -> (Vec<usize>, u64) {
        let images = images(names);
        let is_used = |image: &Stored| image.label() == "used";
        let choice = rules.choose(&images, is_used, 1000 * names.len() as u64 + 1000);
        let place = |image: &&Stored| images.iter().position(|other| other == *image).unwrap();
        (
            choice.removed.iter().map(place).collect(),
            choice.rest_bytes,
        )
    }

    #[test]
    fn the_oldest_go_and_what_is_kept_or_used_stays() {
        let none = Rules::default();
        let keep = |keep| Rules {
            keep: Some(keep),
            ..none
        };
        let older = |seconds| Rules {
            older_than: Some(Duration::from_secs(seconds)),
            ..none
        };
        let most = |max_bytes| Rules {
            max_bytes: Some(max_bytes),
            ..none
        };
        let plain = ["-"; 5];
        assert_eq!(choose(keep(2), &plain), (vec![4, 3, 2], 20));
        assert_eq!(choose(keep(9), &plain), (vec![], 50));
        assert_eq!(choose(older(3), &plain), (vec![4, 3], 30));
        assert_eq!(choose(most(25), &plain), (vec![4, 3, 2], 20));
        assert_eq!(choose(most(50), &plain), (vec![], 50));
        assert_eq!(
            choose(
                Rules {
                    keep: Some(4),
                    ..most(0)
                },
                &plain
            ),
            (vec![4], 40)
        );
        assert_eq!(
            choose(
                Rules {
                    keep: Some(0),
                    ..older(3)
                },
                &plain
            ),
            (vec![4, 3], 30)
        );
        // Old, or too much.
        let both = Rules {
            older_than: Some(Duration::from_secs(4)),
            ..most(30)
        };
        assert_eq!(choose(both, &plain), (vec![4, 3], 30));
        let mixed = ["web", "-", "used", "old", "-"];
        assert_eq!(choose(keep(1), &mixed), (vec![4, 1], 30));
        assert_eq!(
            choose(
                Rules {
                    named: true,
                    ..keep(0)
                },
                &mixed
            ),
            (vec![4, 3, 1, 0], 10)
        );
    }
}
