//! Weights from tensors at hand.

use candle_core::DType;
use masksub::{Error, Weights};

use crate::common::{bits, randn, CPU};

#[test]
fn weights_are_copies() {
    let source = candle_core::Var::from_tensor(&randn((2, 2), "source")).unwrap();
    let weights = Weights::from_tensors([
        ("w".to_string(), source.as_tensor().clone()),
        ("strided".to_string(), randn((3, 2), "strided").t().unwrap()),
    ]);
    let vb = weights.var_builder(DType::F32, &CPU);
    let w = vb.get((2, 2), "w").unwrap();
    assert_eq!(bits(&w), bits(&source));
    source.set(&randn((2, 2), "moved")).unwrap();
    assert_eq!(bits(&w), bits(&randn((2, 2), "source")));
    assert_eq!(
        bits(&vb.get((2, 3), "strided").unwrap()),
        bits(&randn((3, 2), "strided").t().unwrap())
    );
    let error = Error::from(vb.get(1, "absent").unwrap_err());
    assert!(
        matches!(&error, Error::MissingWeight { path, .. } if path == "absent"),
        "{error}"
    );
}
