//! The help of `-h`: a line for each flag.

/// The command with a line for each flag in its help.
pub(super) fn with_brief_help(command: clap::Command) -> clap::Command {
    let about = command.get_about().map(|text| first_clause(&text.to_string()));
    let command = command.about(about.unwrap_or_default()).term_width(0); // as wide as the lines are
    command.after_help("--help explains them.").mut_args(|arg| {
        let help = arg.get_help().map(|text| first_clause(&text.to_string()));
        arg.help(help.unwrap_or_default()).hide_possible_values(true)
    })
}

/// As far as the text can stand alone.
fn first_clause(text: &str) -> String {
    const ENDS: [&str; 10] = [
        ". ",
        ": ",
        "; ",
        " (",
        ", drawn",
        ", instead",
        ", at least",
        ", above",
        ", the first",
        ", and where",
    ];
    let ends = ENDS.iter().filter_map(|end| text.find(end));
    let end = ends.min().unwrap_or(text.len());
    text[..end].trim_end_matches('.').to_string()
}
