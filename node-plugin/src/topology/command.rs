//! `weir topology`: what Weir sees of this machine.

use std::io::{self, Write};

use super::nvml::Library;
use super::sysfs::Sysfs;
use super::{NVML_DEADLINE, dot, read, tree};
use crate::cli::{TopologyArgs, TopologyOutput};
use crate::exit::{Failure, Kind};

/// Runs the command.
///
/// # Errors
/// When the output cannot be written. That there is no GPU is an answer, not an error.
pub fn run(args: &TopologyArgs) -> Result<(), Failure> {
    let topology = read(&Library::new(args.nvml_library.clone(), NVML_DEADLINE), &Sysfs::default());
    let failed = |e: String| Failure::new(Kind::Other, format!("topology: {e}"));
    let text = match args.output {
        _ if args.dot => dot::draw(&topology),
        TopologyOutput::Text => tree::draw(&topology),
        TopologyOutput::Json => {
            serde_json::to_string_pretty(&topology).map_err(|e| failed(e.to_string()))? + "\n"
        }
        TopologyOutput::Yaml => {
            serde_saphyr::to_string(&topology).map_err(|e| failed(e.to_string()))?
        }
    };
    io::stdout().write_all(text.as_bytes()).map_err(|e| failed(e.to_string()))
}
