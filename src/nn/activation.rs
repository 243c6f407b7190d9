//! The choice of an activation, as configurations name it.

use candle_core::{Module, Result, Tensor};
pub use candle_nn::{prelu, PReLU};

use super::ops::swiglu;
use crate::ops;

/// The activations of [`candle_nn::Activation`], under the same names in configuration files; the common ones in one
/// operation each, with gradients of all digits.
///
/// [`PReLU`], which has a parameter, is candle-nn's own: its gradients are right.
///
/// ```
/// use candle_core::{Device, Module, Tensor};
/// use masksub::nn::Activation;
/// let activation: Activation = serde_json::from_str("\"gelu_pytorch_tanh\"")?;
/// assert_eq!(activation, Activation::GeluPytorchTanh);
/// let ys = activation.forward(&Tensor::new(&[-20f32, 20.0], &Device::Cpu)?)?;
/// assert_eq!(ys.to_vec1::<f32>()?, [0.0, 20.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(from = "candle_nn::Activation", into = "candle_nn::Activation")]
pub enum Activation {
    /// [`ops::gelu`](ops::gelu()), the exact one.
    #[default]
    Gelu,
    /// [`ops::gelu_tanh`](ops::gelu_tanh()), as Hugging Face's `gelu_new`.
    NewGelu,
    /// [`ops::relu`](ops::relu()).
    Relu,
    /// The square of [`ops::relu`](ops::relu()).
    Relu2,
    /// x, but at least 0 and at most 6.
    Relu6,
    /// [`ops::silu`].
    Silu,
    /// [`ops::sigmoid`](ops::sigmoid()).
    Sigmoid,
    /// (x + 3) / 6, but at least 0 and at most 1.
    HardSigmoid,
    /// [`swiglu`], of [.., 2 D]: [.., D].
    Swiglu,
    /// [`ops::silu`].
    Swish,
    /// [`ops::mish`](ops::mish()).
    Mish,
    /// x times [`HardSigmoid`](Self::HardSigmoid).
    HardSwish,
    /// x where it is above 0, else alpha (exp(x) - 1).
    Elu(f64),
    /// x where it is above 0, else that slope times x.
    LeakyRelu(f64),
    /// [`ops::gelu_tanh`](ops::gelu_tanh()).
    GeluPytorchTanh,
}

impl Module for Activation {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match *self {
            Self::Gelu => ops::gelu(xs),
            Self::NewGelu | Self::GeluPytorchTanh => ops::gelu_tanh(xs),
            Self::Relu => ops::relu(xs),
            Self::Relu2 => ops::relu(xs)?.sqr(),
            Self::Silu | Self::Swish => ops::silu(xs),
            Self::Sigmoid => ops::sigmoid(xs),
            Self::Swiglu => swiglu(xs),
            Self::Mish => ops::mish(xs),
            Self::Relu6 | Self::HardSigmoid | Self::HardSwish | Self::Elu(_) | Self::LeakyRelu(_) => {
                candle_nn::Activation::from(*self).forward(xs)
            }
        }
    }
}

/// The two conversions, variant by variant.
macro_rules! conversions {
    ($($name:ident $(($parameter:ident))?),* $(,)?) => {
        impl From<candle_nn::Activation> for Activation {
            fn from(activation: candle_nn::Activation) -> Self {
                match activation {
                    $(candle_nn::Activation::$name $(($parameter))? => Self::$name $(($parameter))?,)*
                }
            }
        }

        impl From<Activation> for candle_nn::Activation {
            fn from(activation: Activation) -> Self {
                match activation {
                    $(Activation::$name $(($parameter))? => Self::$name $(($parameter))?,)*
                }
            }
        }
    };
}

conversions! {
    Gelu, NewGelu, Relu, Relu2, Relu6, Silu, Sigmoid, HardSigmoid, Swiglu, Swish, Mish, HardSwish, Elu(alpha),
    LeakyRelu(slope), GeluPytorchTanh,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{random, relative};
    use candle_core::{DType, Var};

    const ALL: [Activation; 15] = [
        Activation::Gelu,
        Activation::NewGelu,
        Activation::Relu,
        Activation::Relu2,
        Activation::Relu6,
        Activation::Silu,
        Activation::Sigmoid,
        Activation::HardSigmoid,
        Activation::Swiglu,
        Activation::Swish,
        Activation::Mish,
        Activation::HardSwish,
        Activation::Elu(0.7),
        Activation::LeakyRelu(0.1),
        Activation::GeluPytorchTanh,
    ];

    fn with_gradient(activation: &impl Module, xs: &Tensor) -> [Tensor; 2] {
        let xs = Var::from_tensor(xs).unwrap();
        let ys = activation.forward(&xs).unwrap();
        let upstream = random(ys.dims(), 1).to_dtype(ys.dtype()).unwrap();
        let grads = (&ys * upstream).unwrap().sum_all().unwrap().backward().unwrap();
        [ys.detach(), grads.get(&xs).unwrap().clone()]
    }

    #[test]
    fn all_equal_candles() {
        // candle's `hard_sigmoid` and `relu6` know f32 alone.
        let xs = (random(&[5, 8], 0) * 3.0).unwrap().to_dtype(DType::F32).unwrap();
        for ours in ALL {
            let candles = candle_nn::Activation::from(ours);
            assert_eq!(Activation::from(candles), ours);
            let pairs = with_gradient(&ours, &xs).into_iter().zip(with_gradient(&candles, &xs));
            for (ours_is, candles_is) in pairs {
                // candle's GELUs have constants of six digits.
                let error = relative(&ours_is, &candles_is);
                assert!(error < 3e-6, "{ours:?}: {error:e}");
            }
        }
    }

    #[test]
    fn configurations_name_them_as_candles() {
        for ours in ALL {
            let candles = serde_json::to_value(candle_nn::Activation::from(ours)).unwrap();
            assert_eq!(serde_json::to_value(ours).unwrap(), candles);
            assert_eq!(serde_json::from_value::<Activation>(candles).unwrap(), ours);
        }
        for (name, expected) in [("gelu", Activation::Gelu), ("gelu_new", Activation::NewGelu)] {
            assert_eq!(serde_json::from_value::<Activation>(name.into()).unwrap(), expected);
        }
        assert_eq!(Activation::default(), Activation::Gelu);
    }
}
