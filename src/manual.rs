//! The manual, in the order in which questions come up. It is text alone; what it names stands in the other modules.
//!
//! 1. [Installation and features](installation)
//! 2. [The change to a training loop](training_loop)
//! 3. [Which branch, which block and which ratio](branches)
//! 4. [Which loss, for which task](losses)
//! 5. [Fine-tuning from a published checkpoint](fine_tuning)
//! 6. [What it costs](cost)
//! 7. [Your own model, your own masks: images, text, audio](own_models)
//! 8. [The paper's recipes](recipes)
//! 9. [Several devices, several machines](ranks)
//! 10. [Coming from PyTorch, timm, or the paper's code](migrating)
//! 11. [Questions and answers](questions)

#[doc = include_str!("../docs/manual/installation.md")]
pub mod installation {}
#[doc = include_str!("../docs/manual/training_loop.md")]
pub mod training_loop {}
#[doc = include_str!("../docs/manual/branches.md")]
pub mod branches {}
#[doc = include_str!("../docs/manual/losses.md")]
pub mod losses {}
#[doc = include_str!("../docs/manual/fine_tuning.md")]
pub mod fine_tuning {}
#[doc = include_str!("../docs/manual/cost.md")]
pub mod cost {}
#[doc = include_str!("../docs/manual/own_models.md")]
pub mod own_models {}
#[doc = include_str!("../docs/manual/recipes.md")]
pub mod recipes {}
#[doc = include_str!("../docs/manual/ranks.md")]
pub mod ranks {}
#[doc = include_str!("../docs/manual/migrating.md")]
pub mod migrating {}
#[doc = include_str!("../docs/manual/questions.md")]
pub mod questions {}
