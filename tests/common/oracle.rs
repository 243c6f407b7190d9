//! The formulas of losses, term by term, over rows of logits or probabilities.

pub type Rows = Vec<Vec<f64>>;

pub fn log_softmax(row: &[f64]) -> Vec<f64> {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
    row.iter().map(|x| x - max - sum.ln()).collect()
}

pub fn softmax(row: &[f64]) -> Vec<f64> {
    log_softmax(row).into_iter().map(f64::exp).collect()
}

pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub fn cross_entropy(logits: &Rows, targets: &Rows) -> f64 {
    let mut total = 0.0;
    for (row, target) in logits.iter().zip(targets) {
        for (log_p, t) in log_softmax(row).iter().zip(target) {
            total -= t * log_p;
        }
    }
    total / logits.len() as f64
}

pub fn bce(logits: &Rows, targets: &Rows) -> f64 {
    let mut total = 0.0;
    for (row, target) in logits.iter().zip(targets) {
        for (&x, t) in row.iter().zip(target) {
            // 1 - sigmoid(x) is sigmoid(-x), without the cancellation.
            total -= t * sigmoid(x).ln() + (1.0 - t) * sigmoid(-x).ln();
        }
    }
    total / (logits.len() * logits[0].len()) as f64
}

pub fn entropy(targets: &Rows) -> f64 {
    let of_row = |row: &Vec<f64>| -> f64 { -row.iter().map(|t| t * t.ln()).sum::<f64>() };
    targets.iter().map(of_row).sum::<f64>() / targets.len() as f64
}

/// KL(p || q), the mean over rows.
pub fn kl(p: &Rows, q: &Rows) -> f64 {
    let of_row = |(p, q): (&Vec<f64>, &Vec<f64>)| p.iter().zip(q).map(|(p, q)| p * (p.ln() - q.ln())).sum::<f64>();
    p.iter().zip(q).map(of_row).sum::<f64>() / p.len() as f64
}

pub fn map(rows: &Rows, f: impl Fn(f64) -> f64) -> Rows {
    rows.iter().map(|row| row.iter().map(|&x| f(x)).collect()).collect()
}

pub fn one_hot(classes: &[usize], count: usize) -> Rows {
    let hot = |&class: &usize| (0..count).map(|c| if c == class { 1.0 } else { 0.0 }).collect();
    classes.iter().map(hot).collect()
}

/// Central differences, good to about 1e-9.
pub fn gradient(logits: &Rows, loss: impl Fn(&Rows) -> f64) -> Vec<f64> {
    let step = 1e-5;
    let mut gradient = vec![];
    for b in 0..logits.len() {
        for c in 0..logits[0].len() {
            let shifted = |by: f64| {
                let mut shifted = logits.clone();
                shifted[b][c] += by;
                loss(&shifted)
            };
            gradient.push((shifted(step) - shifted(-step)) / (2.0 * step));
        }
    }
    gradient
}
