//! Ranks that are processes. Run by `cargo test`, the program starts itself under `mpirun`.

mod common;

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use common::{bits, gradient_distance, labels, randn, small_resnet, tiny, CPU};
use masksub::models::resnet::{BlockKind, ResNet};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::train::distributed::mpi::Mpi;
use masksub::train::distributed::{self, agree, Communicator, Share};
use masksub::train::replicas::{Combine, Replicas, RunningStatistics};
use masksub::{
    Criterion, DropToken, Error, MaskSub, Params, PatchDrop, RandomMasking, Result, Seed, SubBranch, Weights,
};

/// Tells a process that `mpirun` has started what it is to do.
const TASK: &str = "MASKSUB_TEST_MPI";

fn main() -> ExitCode {
    match std::env::var(TASK) {
        Ok(task) => rank(&task),
        Err(_) => {
            launch();
            ExitCode::SUCCESS
        }
    }
}

/// What all of two or four processes do, and those of which one fails.
fn launch() {
    for ranks in [1, 2, 4] {
        let (succeeded, output) = mpirun(ranks, "all");
        assert!(succeeded, "{ranks} ranks: {output}");
        println!("{ranks} ranks: ok");
    }
    for (task, said) in [
        ("error", "the main loss is detached"),
        ("panic", "on purpose"),
        ("killed", "rank 1"),
        ("gone", "rank 1"),
    ] {
        let started = Instant::now();
        let (succeeded, output) = mpirun(3, task);
        assert!(!succeeded && output.contains(said), "{task}: {output}");
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "{task}: {:?}",
            started.elapsed()
        );
        println!("{task}: all ended after {:.1} s", started.elapsed().as_secs_f64());
    }
}

fn mpirun(ranks: usize, task: &str) -> (bool, String) {
    let program = std::env::current_exe().expect("the name of this program");
    let mut command = Command::new("mpirun");
    // OpenMPI: also as root, and with more ranks than cores. Each is to be alone with its threads.
    command.args(["--allow-run-as-root", "--oversubscribe", "-n", &ranks.to_string()]);
    let output = command
        .arg(program)
        .env(TASK, task)
        .env("RAYON_NUM_THREADS", "1")
        .output();
    let output = output.expect("mpirun, of OpenMPI");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    if task == "all" {
        print!("{text}");
    }
    (output.status.success(), text)
}

fn rank(task: &str) -> ExitCode {
    let ranks = Mpi::init().expect("the first time");
    assert!(matches!(
        Mpi::init(),
        Err(Error::InvalidArgument { argument: "mpi", .. })
    ));
    if task == "all" {
        operations(&ranks).expect("operations");
        agreement(&ranks).expect("agreement");
        steps(&ranks).expect("steps");
        ranks.finish();
        return ExitCode::SUCCESS;
    }
    for turn in 0..1000 {
        if (ranks.rank(), turn) == (1, 500) {
            match task {
                "error" => {
                    eprintln!("{}", Error::LossDetached { branch: "main" });
                    return ExitCode::FAILURE;
                }
                "panic" => panic!("on purpose"),
                "killed" => {
                    let itself = std::process::id().to_string();
                    Command::new("kill").args(["-9", &itself]).status().expect("kill");
                }
                _ => return ExitCode::SUCCESS,
            }
        }
        distributed::sum(&ranks, &mut [1.0]).expect("a sum");
    }
    ranks.finish();
    ExitCode::SUCCESS
}

fn operations(ranks: &Mpi) -> Result<()> {
    let (rank, size) = (ranks.rank(), ranks.size());
    let total = (size * (size + 1) / 2) as f64;
    for dtype in [DType::F32, DType::F64] {
        for n in [1, 7, 100_000] {
            let counted = Tensor::arange(0f32, n as f32, &CPU)?.to_dtype(dtype)?;
            let sum = ranks.sum(&(&counted * (rank + 1) as f64)?)?;
            assert_eq!(sum.dtype(), dtype);
            assert_eq!(common::numbers(&sum), common::numbers(&(&counted * total)?));
            let root = size - 1;
            let sent = ranks.broadcast(&(&counted + rank as f64)?, root)?;
            assert_eq!(common::numbers(&sent), common::numbers(&(counted + root as f64)?));
        }
    }
    assert!(ranks.broadcast(&Tensor::ones(1, DType::F32, &CPU)?, size).is_err());
    let own = vec![rank as u8; 3 * rank];
    let all: Vec<Vec<u8>> = (0..size).map(|rank| vec![rank as u8; 3 * rank]).collect();
    assert_eq!(ranks.gather(&own)?, all);
    Ok(())
}

fn agreement(ranks: &Mpi) -> Result<()> {
    let last = ranks.size() - 1;
    let result = if ranks.rank() == last {
        Err(Error::LossDetached { branch: "sub" })
    } else {
        Ok(())
    };
    match agree(ranks, result) {
        Err(Error::LossDetached { branch: "sub" }) => assert_eq!(ranks.rank(), last),
        Err(Error::OtherRank { rank, message }) => {
            assert!(
                rank == last && message.starts_with("the sub loss is detached"),
                "{message}"
            )
        }
        other => panic!("{other:?}"),
    }
    Ok(())
}

/// A step of four replicas on these ranks, against one here by itself; and the same once more.
fn steps(ranks: &Mpi) -> Result<()> {
    let cfg = Config {
        drop_path: 0.2,
        ..tiny(Config::deit3_tiny(5))
    };
    step(
        "vit",
        ranks,
        (16, 16),
        DropToken::new(RandomMasking::new(0.5)?),
        |weights| VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &CPU)),
    )?;
    step(
        "resnet",
        ranks,
        (64, 64),
        PatchDrop::new(RandomMasking::new(0.5)?, 16)?,
        |weights| ResNet::new(&small_resnet(BlockKind::Basic), weights.var_builder(DType::F32, &CPU)),
    )
}

fn step<M, S: SubBranch<M>>(
    name: &str,
    ranks: &Mpi,
    (height, width): (usize, usize),
    branch: S,
    make: impl FnOnce(&Weights) -> candle_core::Result<M>,
) -> Result<()> {
    // Another seed on each rank, until the first one's weights are everybody's.
    let weights = Weights::seeded(Seed::new(ranks.rank() as u64));
    let inner = make(&weights)?;
    distributed::synchronize(ranks, weights.varmap())?;
    let params = Params::from_varmap(weights.varmap());
    let statistics = RunningStatistics::of(weights.varmap());
    let before = statistics.read()?;
    let model = MaskSub::new(inner, branch, &params);
    let (images, labels) = (randn((8, 3, height, width), "images"), labels(8, 5));
    let replicas = Replicas::new(4)?;
    let run = |xs: Tensor, ys: Tensor, number: usize| {
        let key = Seed::new(3).at(1).with_replica(number);
        let step = model.backward(&xs, key, |logits| Criterion::cross_entropy().forward(logits, &ys))?;
        Ok::<_, Error>((step.grads, ()))
    };
    let (expected, _) = replicas.run(&params, &statistics, Combine::Mean, |replica| {
        run(
            replicas.share(&images, replica)?,
            replicas.share(&labels, replica)?,
            replica,
        )
    })?;
    let expected = (common::by_name(&expected, &params), statistics.read()?);

    let share = Share::of(ranks, replicas)?;
    let (rows, local) = (share.of_rank(), share.replicas());
    let (xs, ys) = (rows.share(&images, ranks.rank())?, rows.share(&labels, ranks.rank())?);
    let mut earlier: Option<Vec<Vec<u32>>> = None;
    for _ in 0..2 {
        statistics.write(&before)?;
        let (grads, _) = share.run(&params, &statistics, Combine::Mean, |replica| {
            run(
                local.share(&xs, replica)?,
                local.share(&ys, replica)?,
                share.number(replica),
            )
        })?;
        let grads = common::by_name(&grads, &params);
        let off = gradient_distance(&grads, &expected.0);
        assert!(off < 1e-6, "{name}: gradients are off by {off:e}");
        for (ours, theirs) in statistics.read()?.iter().zip(&expected.1) {
            assert!(common::distance(ours, theirs) < 1e-6);
        }
        let now: Vec<_> = grads.values().map(bits).collect();
        assert!(
            earlier.is_none_or(|earlier| earlier == now),
            "{name}: other bits than before"
        );
        // The same bits everywhere.
        let digest = now
            .concat()
            .iter()
            .fold(0u64, |sum, &bits| sum.rotate_left(5) ^ u64::from(bits));
        let all = ranks.gather(&digest.to_le_bytes())?;
        assert!(
            all.iter().all(|theirs| *theirs == all[0]),
            "{name}: other bits than elsewhere"
        );
        earlier = Some(now);
        if ranks.rank() == 0 {
            println!("{name} on {} ranks: gradients off by {off:.1e}", ranks.size());
        }
    }
    Ok(())
}
