//! What all ranks do when one of them fails, or does something else.

use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use masksub::train::distributed::{self, agree, threads, Alone, Communicator, Share};
use masksub::train::replicas::{Combine, Replicas};
use masksub::{Error, Result, Seed};

use super::one_device::resnet;
use super::{of_other, same_bits, Values, BATCH, CLASSES};
use crate::common::{bits, labels, randn, CPU};

#[test]
fn a_loss_that_is_not_finite_on_one_is_refused_by_all() {
    let images = randn((BATCH, 3, 64, 64), "images");
    let ended = threads::run(4, |ranks| {
        let model = resnet()?;
        let before: Values = model
            .weights
            .state()
            .into_iter()
            .map(|(n, t)| (n, t.copy().unwrap()))
            .collect();
        let share = Share::of(ranks, Replicas::new(4)?)?;
        let xs = share.of_rank().share(&images, ranks.rank())?;
        let ys = share.of_rank().share(&labels(BATCH, CLASSES), ranks.rank())?;
        let xs = if ranks.rank() == 2 { (xs * f64::INFINITY)? } else { xs };
        let refused = share.run(&model.params, &model.statistics, Combine::Mean, |replica| {
            model.replica(&xs, &ys, Seed::new(0).at(0).with_replica(share.number(replica)))
        });
        let after: Values = model.weights.state().into_iter().collect();
        assert!(
            same_bits(&before, &after),
            "rank {} has changed something",
            ranks.rank()
        );
        // They go on together: the next step is none of the last one's business.
        let mut ones = [1.0];
        distributed::sum(ranks, &mut ones)?;
        assert_eq!(ones, [4.0]);
        refused.map(drop)
    });
    let ended = ended.unwrap();
    assert!(matches!(ended[2], Err(Error::NonFiniteLoss { branch: "main", .. })));
    for rank in [0, 1, 3] {
        let (named, why) = of_other(&ended[rank]).unwrap();
        assert!(named == 2 && why.starts_with("the main loss is "), "{why}");
    }
}

/// What all of three ranks end with when rank 1 does `fails` in the place of the third of ten sums.
fn with_a_failing_rank(fails: impl Fn() -> Result<()> + Sync) -> Vec<Result<()>> {
    let started = Instant::now();
    let ended = threads::run(3, |ranks| {
        for turn in 0..10 {
            if (ranks.rank(), turn) == (1, 2) {
                return fails();
            }
            distributed::sum(ranks, &mut [1.0])?;
        }
        Ok(())
    });
    assert!(started.elapsed() < Duration::from_secs(10));
    ended.unwrap()
}

#[test]
fn one_that_fails_ends_the_others_by_name() {
    let failed = with_a_failing_rank(|| Err(Error::LossDetached { branch: "main" }));
    assert!(matches!(failed[1], Err(Error::LossDetached { .. })));
    let panicked = with_a_failing_rank(|| panic!("on purpose"));
    assert_eq!(of_other(&panicked[1]), Some((1, "it panicked: on purpose")));
    let gone = with_a_failing_rank(|| Ok(()));
    assert!(gone[1].is_ok());
    let cases = [
        (failed, "the main loss is detached"),
        (panicked, "it panicked: on purpose"),
        (gone, "it has ended"),
    ];
    for (ended, expected) in cases {
        for rank in [0, 2] {
            let (named, why) = of_other(&ended[rank]).unwrap();
            assert!(named == 1 && why.starts_with(expected), "{why}");
        }
    }
}

#[test]
fn that_do_not_call_the_same_are_refused() {
    let ended = threads::run(2, |ranks| match ranks.rank() {
        0 => ranks.gather(&[1]).map(drop),
        _ => ranks.sum(&Tensor::ones(3, DType::F32, &CPU)?).map(drop),
    });
    assert!(ended.unwrap().iter().all(|ended| of_other(ended).is_some()));
    let ended = threads::run(2, |ranks| {
        ranks.sum(&Tensor::ones(3 + ranks.rank(), DType::F32, &CPU)?).map(drop)
    });
    assert_eq!(of_other(&ended.unwrap()[0]), Some((1, "it gives 4 values, not 3")));
    let ended = threads::run(2, |ranks| {
        ranks.broadcast(&Tensor::ones(3, DType::F32, &CPU)?, 2).map(drop)
    });
    assert!(matches!(
        ended.unwrap()[0],
        Err(Error::InvalidArgument { argument: "root", .. })
    ));
    assert!(threads::run(0, |_| Ok::<_, Error>(())).is_err());
}

#[test]
fn one_alone_does_as_without_ranks() {
    assert_eq!((Alone.rank(), Alone.size()), (0, 1));
    let values = Tensor::new(&[1f32, 2.0], &CPU).unwrap();
    assert_eq!(bits(&Alone.sum(&values).unwrap()), bits(&values));
    assert_eq!(bits(&Alone.broadcast(&values, 0).unwrap()), bits(&values));
    assert!(Alone.broadcast(&values, 1).is_err());
    assert_eq!(Alone.gather(&[7]).unwrap(), [[7]]);
    let error = agree(&Alone, Err::<(), _>(Error::LossDetached { branch: "sub" })).unwrap_err();
    assert!(matches!(error, Error::LossDetached { branch: "sub" }));
}
