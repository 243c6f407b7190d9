//! The images that flags name, and how they are turned into a network's input.

use super::Flags;
use crate::data::digits::{self, Digits};
use crate::data::grey_set::{self, GreySet};
use crate::data::image_tree::{ImageTree, Unreadable};
use crate::data::transform::{Settings, Transform};
use crate::data::{Dataset, Portion};
use crate::network::{Input, Network};
use crate::recipe::Recipe;
use anyhow::{bail, ensure, Result};
use masksub::augment::Normalize;

impl Flags {
    /// How images are turned into what `network` takes.
    pub fn input_settings(&self, network: &Network) -> Settings {
        let settings = self.input.settings(network);
        match &self.data {
            // No network was published for them: as far as a byte goes, which is the same for all such sets.
            Some(root) if grey_set::is_at(root) => Settings {
                normalize: Normalize::INCEPTION,
                ..settings
            },
            _ => settings,
        }
    }

    /// Refuses flags of a tree of files where there is none.
    fn check_no_tree(&self) -> Result<()> {
        ensure!(
            self.val_split == "val",
            "--val-split is for directories of a tree of images: there are images to test on already"
        );
        ensure!(
            self.unreadable == Unreadable::Error,
            "--unreadable is for a tree of images, whose files are decoded one by one"
        );
        Ok(())
    }

    /// The digits, or the images in `--data`.
    pub fn dataset(&self) -> Result<Box<dyn Dataset>> {
        let network = self.network(1)?; // only its input matters here
        let portion = Portion {
            train_size: self.train_size,
            validation: self.validation,
            seed: self.seed,
        };
        let Some(root) = &self.data else {
            ensure!(
                self.recipe == Recipe::Plain,
                "--recipe is for images: say with --data where they are (the digits are trained by the plain one)"
            );
            self.check_no_tree()?;
            if let Some(flag) = self.input.any() {
                bail!("{flag} is for the images in --data: the digits are trained as they are");
            }
            let Input { image_size, .. } = network.input();
            let digits = Digits::load(portion, image_size / digits::SIDE, &self.device)?;
            return Ok(Box::new(digits));
        };
        let transform = Transform::new(self.input_settings(&network))?;
        if grey_set::is_at(root) {
            self.check_no_tree()?;
            ensure!(
                self.input.workers.is_none(),
                "--workers is for a tree of images: those of a set like MNIST need no decoding"
            );
            return Ok(Box::new(GreySet::open(root, transform, portion, &self.device)?));
        }
        let tree = ImageTree::open(
            root,
            &self.val_split,
            transform,
            self.unreadable,
            portion,
            self.input.workers.unwrap_or(0),
            &self.device,
        )?;
        Ok(Box::new(tree))
    }
}
