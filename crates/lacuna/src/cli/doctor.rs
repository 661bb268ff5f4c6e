//! `lacuna doctor`

use serde_json::json;

use super::ui::Ui;

/// Say what this machine has to compute with, and what each missing part costs
#[derive(clap::Args)]
#[command(after_help = "Example:\n  lacuna doctor")]
pub(super) struct Args {}

pub(super) fn run(ui: &Ui) {
    let parts = lacuna::doctor::parts();
    ui.result(&json!({ "parts": parts }), || {
        let line = |part: &lacuna::doctor::Part| {
            let found = part.found.as_deref().unwrap_or("not found");
            let costs = part.costs.iter().map(|costs| format!("{:10}{costs}\n", ""));
            format!("{:10}{found}\n{}", part.part, costs.collect::<String>())
        };
        parts.iter().map(line).collect::<String>()
            + "\nModels run on the CPU, or with --device cuda on the first GPU.\n"
    });
}
