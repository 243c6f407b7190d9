//! masksub::nn has everything that candle-nn has, at the same path: held against the sources of the candle-nn that cargo
//! resolved. A release with something new fails here, until the table below says what became of it.

mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use source::{Crate, Origin};

/// What became of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// candle-nn's own.
    ReExported,
    /// Another one, with the same signature.
    Replaced,
}
use Fate::{ReExported, Replaced};

/// Declares the table, and uses each path once: what is not there does not compile.
macro_rules! table {
    ($($fate:ident, $why:literal: { $($($segment:ident)::+),* $(,)? })*) => {
        const TABLE: &[(Fate, &str, &[&str])] = &[
            $(($fate, $why, &[$(concat!($("::", stringify!($segment)),+)),*])),*
        ];
        #[expect(unused_imports, reason = "that they are there is the test")]
        mod each_is_there {
            $($(pub use masksub::nn::$($segment)::+ as _;)*)*
        }
    };
}

/// Items that are deprecated: they are there, but to use one is a warning.
const DEPRECATED: &[&str] = &["::cpu_flash_attention::run_flash_attn_cpu"];

/// Items that masksub::nn has not, and why.
const REFUSED: &[(&str, &str)] = &[("::moe::cutile", "behind a feature of candle-nn that this crate has not")];

table! {
    ReExported, "trains, and is fast or not worth a change": {
        activation::prelu, activation::PReLU, prelu, PReLU,
        embedding, embedding::embedding, embedding::Embedding, Embedding,
        encoding, encoding::one_hot,
        func, func::func, func::func_t, func::Func, func::FuncT, func_t, Func, FuncT,
        init, init::FanInOut, init::Init, init::NonLinearity, init::NormalOrUniform, init::DEFAULT_KAIMING_NORMAL,
        init::DEFAULT_KAIMING_UNIFORM, init::ONE, init::ZERO, Init,
        layer_norm::LayerNormConfig, LayerNormConfig, batch_norm::BatchNormConfig, BatchNormConfig,
        loss::cross_entropy, loss::huber, loss::mse, loss::nll,
        ops::hard_sigmoid, ops::layer_norm_slow, ops::leaky_relu, ops::log_softmax,
        ops::pixel_shuffle, ops::pixel_unshuffle, ops::replication_pad2d, ops::rms_norm_slow, ops::Identity,
        optim, optim::AdamW, optim::Optimizer, optim::ParamsAdamW, optim::SGD, AdamW, Optimizer, ParamsAdamW, SGD,
        rnn, rnn::gru, rnn::lstm, rnn::Direction, rnn::GRUConfig, rnn::GRUState, rnn::GRU, rnn::LSTMConfig,
        rnn::LSTMState, rnn::LSTM, rnn::RNN, gru, lstm, GRUConfig, LSTMConfig, GRU, LSTM, RNN,
        rotary_emb::rope_i_slow, rotary_emb::rope_slow,
        sampling,
        sequential, sequential::seq, sequential::Sequential, seq, Sequential,
        var_builder, var_builder::Backend, var_builder::Rename, var_builder::Renamer, var_builder::Shard,
        var_builder::ShardedSafeTensors, var_builder::ShardedVarBuilder, var_builder::SafeTensorWithRouting,
        var_builder::SimpleBackend, var_builder::VarBuilder, var_builder::VarBuilderArgs, VarBuilder,
        var_map, var_map::VarMap, VarMap,
        Module, ModuleT,
    }
    ReExported, "no tensor, or none with a gradient": {
        attention::AttnMask, attention::cpu_flash::causal::causal_decode_f32_interleaved,
        kv_cache::rope_i_inplace, kv_cache::IndicesAndMask, kv_cache::RawInterleavedKvCache, sampling::gumbel_softmax,
    }
    Replaced, "gradients stop": {
        layer_norm, layer_norm::layer_norm, layer_norm::layer_norm_no_bias, layer_norm::rms_norm, layer_norm::LayerNorm,
        layer_norm::RmsNorm, layer_norm_no_bias, rms_norm, LayerNorm, RmsNorm,
        ops, ops::layer_norm, ops::rms_norm, ops::sdpa, ops::softmax_last_dim,
        rotary_emb, rotary_emb::rope, rotary_emb::rope_i, rotary_emb::rope_thd,
        attention, attention::flash_attn, attention::flash_attn_varlen_cpu, attention::flash_attn_varlen_unfused,
        attention::cpu_flash, attention::cpu_flash::flash_attn, attention::cpu_flash::causal,
        attention::cpu_flash::causal::run_causal_attn_cpu, attention::cpu_flash::standard,
        attention::cpu_flash::standard::run_flash_attn_cpu, attention::cpu_flash::varlen,
        attention::cpu_flash::varlen::flash_attn_varlen_cpu, attention::varlen,
        attention::varlen::flash_attn_varlen_unfused,
        varlen_attention, varlen_attention::flash_attn_varlen_unfused,
        cpu_flash_attention,
    }
    Replaced, "keys and values are detached": {
        kv_cache, kv_cache::Cache, kv_cache::ConcatKvCache, kv_cache::InterleavedKvCache, kv_cache::KvCache,
        kv_cache::RotatingCache, kv_cache::RotatingKvCache, kv_cache::ScatteredCacheBuilder, kv_cache::ScatteredKvCache,
    }
    Replaced, "gradients stop, for CUDA alone: refused where there are any": {
        moe, moe::moe_gemm, moe::moe_gemm_gguf,
    }
    Replaced, "infinite or undefined for large logits": {
        loss, loss::binary_cross_entropy_with_logit,
    }
    Replaced, "slow, or writes the statistics of steps that are rejected": {
        batch_norm, batch_norm::batch_norm, batch_norm::BatchNorm, BatchNorm,
        ops::softmax,
    }
    Replaced, "slow, or wrong for batches (transposed convolutions and those of one dimension)": {
        conv, conv::conv1d, conv::conv1d_no_bias, conv::conv2d, conv::conv2d_no_bias, conv::conv_transpose1d,
        conv::conv_transpose1d_no_bias, conv::conv_transpose2d, conv::conv_transpose2d_no_bias, conv::Conv1d, conv::Conv2d,
        conv::ConvTranspose1d, conv::ConvTranspose2d,
        conv1d, conv1d_no_bias, conv2d, conv2d_no_bias, conv_transpose1d, conv_transpose1d_no_bias, conv_transpose2d,
        conv_transpose2d_no_bias, Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d,
        linear, linear::linear, linear::linear_b, linear::linear_no_bias, linear::Linear, linear_b, linear_no_bias, Linear,
    }
    Replaced, "undefined gradients for large numbers, or a panic": {
        ops::selu, ops::swiglu,
    }
    Replaced, "slow": {
        activation, activation::Activation, Activation,
        group_norm, group_norm::group_norm, group_norm::GroupNorm, GroupNorm,
        ops::mish, ops::sigmoid, ops::silu,
    }
    Replaced, "its draws on the CPU cannot be repeated": {
        ops::dropout, ops::Dropout, Dropout,
    }
    ReExported, "numbers alone": {
        conv::Conv1dConfig, conv::Conv2dConfig, conv::ConvTranspose1dConfig, conv::ConvTranspose2dConfig, Conv1dConfig,
        Conv2dConfig, ConvTranspose1dConfig, ConvTranspose2dConfig,
    }
}

/// The directory of candle-nn's sources, as cargo resolved it.
fn sources_of_candle_nn() -> PathBuf {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .expect("cargo can be run");
    let complaint = String::from_utf8_lossy(&metadata.stderr).into_owned();
    assert!(metadata.status.success(), "cargo metadata: {complaint}");
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let manifest = packages
        .iter()
        .find(|package| package["name"] == "candle-nn")
        .and_then(|package| package["manifest_path"].as_str())
        .expect("candle-nn is a dependency of this crate");
    let sources = Path::new(manifest).with_file_name("src");
    assert!(
        sources.join("lib.rs").is_file(),
        "candle-nn's sources are not at {}: without them nobody can say whether masksub::nn has all of it",
        sources.display()
    );
    sources
}

fn candle_nn() -> Crate {
    Crate::read(&sources_of_candle_nn().join("lib.rs"))
}

fn stand_in() -> Crate {
    Crate::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/nn/mod.rs")))
}

#[test]
fn every_item_of_candle_nn_is_in_the_table() {
    let refused = |path: &str| {
        REFUSED
            .iter()
            .any(|(part, _)| path == *part || path.starts_with(&format!("{part}::")))
    };
    let ours = stand_in().items;
    assert!(DEPRECATED.iter().all(|path| ours.contains_key(*path)));
    let listed_elsewhere = |path: &str| refused(path) || DEPRECATED.contains(&path);
    let candles: BTreeSet<String> = candle_nn()
        .items
        .into_keys()
        .filter(|path| !listed_elsewhere(path))
        .collect();
    let mut listed = BTreeSet::new();
    for path in TABLE.iter().flat_map(|(_, _, paths)| paths.iter()) {
        assert!(listed.insert(path.to_string()), "{path} is in the table twice");
    }
    let new: Vec<_> = candles.difference(&listed).collect();
    assert!(
        new.is_empty(),
        "candle-nn has items that the table does not tell of: {new:#?}"
    );
    let gone: Vec<_> = listed.difference(&candles).collect();
    assert!(
        gone.is_empty(),
        "the table tells of items that candle-nn has not: {gone:#?}"
    );
    assert!(
        candles.len() > 150,
        "so few were found that they were not read: {}",
        candles.len()
    );
}

#[test]
fn the_table_says_which_are_candles_own() {
    let ours = stand_in();
    let mut wrong = BTreeMap::new();
    for (fate, _, paths) in TABLE {
        for path in *paths {
            let found = match ours.origin(path) {
                Origin::Of("candle_nn" | "candle_core") => ReExported,
                Origin::Here | Origin::Of(_) => Replaced,
            };
            if found != *fate {
                wrong.insert(path, found);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn replaced_types_have_every_method() {
    let (candles, ours) = (candle_nn(), stand_in());
    let mut compared = 0;
    for (name, methods) in &ours.methods {
        let Some(wanted) = candles.methods.get(name) else {
            continue;
        };
        compared += 1;
        // Those of a type that derefs to candle's are candle's; a macro's are used below.
        if !ours.derefs.contains(name) && !BY_MACRO.contains(&name.as_str()) {
            let missing: Vec<_> = wanted.difference(methods).collect();
            assert!(missing.is_empty(), "{name} has no {missing:?}");
        }
    }
    assert!(compared >= 10, "{compared} types were compared");
}

/// Types whose methods a macro writes.
const BY_MACRO: &[&str] = &[
    "Conv1d",
    "Conv2d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "KvCache",
    "RotatingKvCache",
];

#[test]
fn types_of_macros_have_every_method() {
    use masksub::nn::kv_cache::{KvCache, RotatingKvCache};
    use masksub::nn::{Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d};
    let candles = candle_nn();
    let mut wanted: BTreeSet<(&str, &str)> = BY_MACRO
        .iter()
        .flat_map(|name| candles.methods[*name].iter().map(|method| (*name, method.as_str())))
        .collect();
    macro_rules! used {
        ($($name:ident)*: $methods:tt) => {$(used!(@ $name $methods);)*};
        (@ $name:ident [$($method:ident)*]) => {$(
            let _ = $name::$method;
            wanted.remove(&(stringify!($name), stringify!($method)));
        )*};
    }
    used!(Conv1d Conv2d ConvTranspose1d ConvTranspose2d: [new config weight bias]);
    used!(Conv2d: [absorb_bn]);
    used!(KvCache RotatingKvCache: [new k_cache v_cache k_cache_mut v_cache_mut k v append current_seq_len reset]);
    used!(RotatingKvCache: [offset attn_mask positions]);
    assert!(wanted.is_empty(), "{wanted:?}");
}
