//! Where a preset was read.

/// A flag that a recipe sets, and where its value was read.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Without its dashes.
    pub flag: &'static str,
    /// As it is typed; empty for a list of nothing.
    pub value: &'static str,
    pub place: Place,
    /// What stands there.
    pub option: &'static str,
}

/// A file of a project, or a table of a paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub project: &'static str,
    pub file: &'static str,
}

impl Place {
    pub const fn of(project: &'static str, file: &'static str) -> Self {
        Self { project, file }
    }

    /// A preset that was read here.
    pub const fn says(self, flag: &'static str, value: &'static str, option: &'static str) -> Preset {
        Preset {
            flag,
            value,
            place: self,
            option,
        }
    }
}

impl std::fmt::Display for Preset {
    /// Project, file and option.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.place.project, self.place.file, self.option)
    }
}

/// MaskSub's own choices, as its paper gives them (arXiv 2306.11339). The authors' code was not read.
pub const MASKSUB: Place = Place::of("MaskSub", "arXiv 2306.11339, second-hand");

/// timm's `rand-m9-mstd0.5-inc1`, where it was read.
pub const fn rand_augment(place: Place, option: &'static str) -> [Preset; 3] {
    [
        place.says("auto-augment", "rand-augment", option),
        place.says("magnitude", "9", option),
        place.says("increasing", "true", option),
    ]
}
