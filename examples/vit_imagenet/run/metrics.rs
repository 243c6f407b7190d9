//! `metrics.csv`: a row for every epoch.

use anyhow::{ensure, Context, Result};

/// An epoch. Accuracies are in per cent, losses are means over the images; what was not computed is NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Epoch {
    /// Counted from 1.
    pub epoch: usize,
    /// Steps since the start of the run.
    pub step: usize,
    /// Learning rate of the epoch's last step.
    pub lr: f64,
    pub train_loss_main: f64,
    pub train_loss_sub: f64,
    /// Of the main branch, on the training images as they were seen.
    pub train_top1: f64,
    /// On the test images, or those held out in their place (`--validation`); of epochs that were not evaluated
    /// (`--evaluate-every`) not computed.
    pub test_loss: f64,
    pub test_top1: f64,
    pub test_top5: f64,
    /// Of the averaged weights, on the test images.
    pub ema_loss: f64,
    pub ema_top1: f64,
    /// Means over the steps of what `--record-difficulty` asks for: norms of the branches' gradients, the cosine between
    /// them, and the share of images, in per cent, of which both predict the same class. Of a batch in parts (`--accumulate`,
    /// `--replicas`) each is the mean over the parts.
    pub grad_norm_main: f64,
    pub grad_norm_sub: f64,
    pub grad_cosine: f64,
    pub agreement: f64,
    /// That the epoch's steps took of the processors, in all threads of this process, one rank: of steps on the CPU.
    pub train_cpu_seconds: f64,
    /// That the epoch's steps took.
    pub train_seconds: f64,
    /// That the epoch took, evaluation included.
    pub seconds: f64,
}

const FIELDS: usize = 18;

const HEADER: [&str; FIELDS] = [
    "epoch",
    "step",
    "lr",
    "train_loss_main",
    "train_loss_sub",
    "train_top1",
    "test_loss",
    "test_top1",
    "test_top5",
    "ema_loss",
    "ema_top1",
    "grad_norm_main",
    "grad_norm_sub",
    "grad_cosine",
    "agreement",
    "train_cpu_seconds",
    "train_seconds",
    "seconds",
];

impl Epoch {
    fn parse(record: &csv::StringRecord) -> Result<Self> {
        let field = |name: &str| {
            let column = HEADER.iter().position(|header| *header == name);
            column.and_then(|column| record.get(column)).unwrap_or_default()
        };
        let number = |name: &str| -> Result<f64> {
            match field(name) {
                "" => Ok(f64::NAN),
                text => text
                    .parse()
                    .with_context(|| format!("{name} is {text:?}, which is no number")),
            }
        };
        let count = |name: &str| -> Result<usize> {
            (field(name).parse()).with_context(|| format!("{name} is {:?}, which is no count", field(name)))
        };
        Ok(Self {
            epoch: count("epoch")?,
            step: count("step")?,
            lr: number("lr")?,
            train_loss_main: number("train_loss_main")?,
            train_loss_sub: number("train_loss_sub")?,
            train_top1: number("train_top1")?,
            test_loss: number("test_loss")?,
            test_top1: number("test_top1")?,
            test_top5: number("test_top5")?,
            ema_loss: number("ema_loss")?,
            ema_top1: number("ema_top1")?,
            grad_norm_main: number("grad_norm_main")?,
            grad_norm_sub: number("grad_norm_sub")?,
            grad_cosine: number("grad_cosine")?,
            agreement: number("agreement")?,
            train_cpu_seconds: number("train_cpu_seconds")?,
            train_seconds: number("train_seconds")?,
            seconds: number("seconds")?,
        })
    }

    /// An empty field for NaN.
    fn record(&self, number: impl Fn(f64) -> String) -> [String; FIELDS] {
        let or_empty = |value: f64, text: &dyn Fn(f64) -> String| {
            if value.is_nan() {
                String::new()
            } else {
                text(value)
            }
        };
        let number = |value| or_empty(value, &number);
        let seconds = |value| or_empty(value, &|value| format!("{value:.3}"));
        [
            self.epoch.to_string(),
            self.step.to_string(),
            number(self.lr),
            number(self.train_loss_main),
            number(self.train_loss_sub),
            number(self.train_top1),
            number(self.test_loss),
            number(self.test_top1),
            number(self.test_top5),
            number(self.ema_loss),
            number(self.ema_top1),
            number(self.grad_norm_main),
            number(self.grad_norm_sub),
            number(self.grad_cosine),
            number(self.agreement),
            seconds(self.train_cpu_seconds),
            seconds(self.train_seconds),
            seconds(self.seconds),
        ]
    }
}

/// The file's text for these epochs, in as many digits as a reader wants.
pub fn text(epochs: &[Epoch]) -> Result<String> {
    write(epochs, six_digits)
}

/// The same with every digit, for [`parse`]: what is read is what was written.
pub fn exact(epochs: &[Epoch]) -> Result<String> {
    write(epochs, |value| value.to_string())
}

fn write(epochs: &[Epoch], number: impl Fn(f64) -> String) -> Result<String> {
    let mut writer = csv::Writer::from_writer(vec![]);
    writer.write_record(HEADER)?;
    for epoch in epochs {
        writer.write_record(epoch.record(&number))?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

/// The shortest text of the number rounded to six significant digits.
fn six_digits(value: f64) -> String {
    let rounded = format!("{value:.5e}").parse::<f64>();
    rounded.unwrap_or(value).to_string()
}

/// The epochs of a text.
pub fn parse(text: &str) -> Result<Vec<Epoch>> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let columns = reader.headers()?.iter().map(String::from).collect::<Vec<_>>();
    ensure!(columns == HEADER, "its columns are {columns:?} instead of {HEADER:?}");
    reader.records().map(|record| Epoch::parse(&record?)).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use rand::Rng;

    pub fn epoch(n: usize) -> Epoch {
        Epoch {
            epoch: n,
            step: 19 * n,
            lr: 1.5e-4,
            train_loss_main: 2.25 / n as f64,
            train_loss_sub: f64::NAN,
            train_top1: 12.5,
            test_loss: 2.0 / n as f64,
            test_top1: 100.0 / 3.0,
            test_top5: 100.0,
            ema_loss: f64::NAN,
            ema_top1: f64::NAN,
            grad_norm_main: f64::NAN,
            grad_norm_sub: f64::NAN,
            grad_cosine: f64::NAN,
            agreement: f64::NAN,
            train_cpu_seconds: 1.87654,
            train_seconds: 0.98765,
            seconds: 1.23456,
        }
    }

    #[test]
    fn an_epoch_is_a_row() {
        let header =
            "epoch,step,lr,train_loss_main,train_loss_sub,train_top1,test_loss,test_top1,test_top5,ema_loss,ema_top1,\
                      grad_norm_main,grad_norm_sub,grad_cosine,agreement,train_cpu_seconds,train_seconds,seconds\n";
        assert_eq!(text(&[]).unwrap(), header);
        let first = "1,19,0.00015,2.25,,12.5,2,33.3333,100,,,,,,,1.877,0.988,1.235\n";
        assert_eq!(text(&[epoch(1)]).unwrap(), format!("{header}{first}"));
        assert_eq!(text(&[epoch(1), epoch(2)]).unwrap().lines().count(), 3);
    }

    #[test]
    fn numbers_have_six_digits_at_most() {
        for (value, text) in [
            (0.00037999999999999997, "0.00038"),
            (2.0 / 3.0, "0.666667"),
            (99.99999, "100"),
            (1234567.0, "1234570"),
            (-0.1 - 0.2, "-0.3"),
            (0.0, "0"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(six_digits(value), text);
        }
    }

    #[test]
    fn what_is_written_exactly_is_read_again() {
        let epochs = [epoch(1), epoch(3)];
        let text = exact(&epochs).unwrap();
        let read = parse(&text).unwrap();
        assert_eq!(exact(&read).unwrap(), text);
        assert!(read[0].ema_top1.is_nan() && read[1].test_top1 == epochs[1].test_top1);
        for broken in ["", "a,b\n", &text.replace("0.00015", "x")] {
            assert!(parse(broken).is_err(), "{broken}");
        }
    }

    /// Of a checkpoint that somebody else wrote, say.
    #[test]
    fn any_text_is_read_or_refused() {
        let whole = exact(&[epoch(1), epoch(2), epoch(7)]).unwrap();
        let mut rng = masksub::Seed::new(0).at(0).rng(0, masksub::Purpose::MASK);
        let mut read = 0;
        for _ in 0..20_000 {
            let mut text: Vec<char> = whole.chars().collect();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..text.len().max(1));
                match rng.random_range(0..3) {
                    0 if !text.is_empty() => drop(text.remove(at)),
                    0 | 1 => text.insert(at, ['"', ',', '\n', '-', 'e', '9', 'ü'][rng.random_range(0..7)]),
                    _ => text.truncate(at + 1),
                }
            }
            let text: String = text.into_iter().collect();
            if let Ok(epochs) = parse(&text) {
                read += 1;
                let again = exact(&epochs).unwrap();
                assert_eq!(exact(&parse(&again).unwrap()).unwrap(), again, "{text}");
            }
        }
        assert!(read > 1000, "{read}");
    }
}
