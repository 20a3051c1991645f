//! `form pack lint` and `form pack fmt`: a Formfile is judged and laid out here, without a cloud.

use std::io::IsTerminal as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use formfile::{Diagnostic, Severity};
use serde_json::json;

use crate::cli::{self, Format};
use crate::error::Error;
use crate::output::{say, tell};

/// How wide a diagnostic is on a terminal.
const WIDTH: usize = 100;

pub(crate) fn lint(args: cli::Lint) -> Result<(), Error> {
    let (path, text) = read(&args.path)?;
    let name = path.display().to_string();
    let found = formfile::lint(&name, &text).unwrap_or_else(|errors| errors);
    match args.output.output {
        Format::Json => say(serde_json::to_string_pretty(&list(&found)).unwrap_or_default())?,
        Format::Yaml => say(serde_yaml_ng::to_string(&list(&found)).unwrap_or_default().trim_end())?,
        Format::Table | Format::Wide => {
            for diagnostic in &found {
                say(format_args!("{}\n", shown(diagnostic, std::io::stdout().is_terminal())))?;
            }
        }
    }
    let errors = found.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).count();
    let warnings = found.len().saturating_sub(errors);
    match (errors, warnings) {
        (0, 0) => Ok(()),
        (0, _) if args.deny.is_none() => Ok(()),
        (0, _) => Err(Error::Usage(format!("{name}: {warnings} warnings"))),
        _ => Err(Error::Usage(format!("{name}: {errors} errors"))),
    }
}

pub(crate) fn format(args: cli::Layout) -> Result<(), Error> {
    let (path, text) = read(&args.path)?;
    let canonical = formfile::format(&path.display().to_string(), &text).map_err(|errors| refused(&path, &errors))?;
    if canonical.as_bytes() == text {
        return Ok(());
    }
    if args.check {
        return Err(Error::Usage(format!("{}: not in the canonical form; run `form pack fmt`", path.display())));
    }
    // Where it really lies, and with the mode that it has.
    let real = path.canonicalize().map_err(Error::file(&path))?;
    let mode = real.metadata().map_err(Error::file(&path))?.permissions().mode();
    form_service::file::replace(&real, canonical.as_bytes(), mode & 0o7777).map_err(Error::file(&path))?;
    say(path.display())
}

/// The error that a Formfile's mistakes are, with all of them.
pub(crate) fn refused(path: &Path, errors: &[Diagnostic]) -> Error {
    let fancy = std::io::stderr().is_terminal();
    errors.iter().for_each(|diagnostic| tell(format_args!("{}\n", shown(diagnostic, fancy))));
    Error::Usage(format!("{}: {} errors", path.display(), errors.len()))
}

fn shown(diagnostic: &Diagnostic, fancy: bool) -> String {
    if fancy && std::env::var_os("NO_COLOR").is_none() { diagnostic.fancy(WIDTH) } else { diagnostic.plain() }
}

fn list(found: &[Diagnostic]) -> serde_json::Value {
    let one = |diagnostic: &Diagnostic| {
        json!({
            "file": diagnostic.file,
            "line": diagnostic.line,
            "column": diagnostic.column,
            "severity": match diagnostic.severity { Severity::Error => "error", Severity::Warning => "warning" },
            "lint": diagnostic.lint,
            "message": diagnostic.message,
            "hint": diagnostic.hint,
        })
    };
    found.iter().map(one).collect()
}

/// The Formfile that is meant: the file itself, or the one in the directory.
fn read(path: &Path) -> Result<(PathBuf, Vec<u8>), Error> {
    let path = if path.is_dir() { path.join("Formfile") } else { path.to_owned() };
    let text = std::fs::read(&path).map_err(Error::file(&path))?;
    Ok((path, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Output;

    #[test]
    fn a_formfile_is_judged_and_laid_out_where_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("Formfile");
        let lint_it = |deny: Option<&str>| {
            let output = Output { output: Format::Json };
            lint(cli::Lint { path: dir.path().to_owned(), deny: deny.map(str::to_owned), output })
        };
        let layout = |check| format(cli::Layout { path: path.clone(), check });

        std::fs::write(&path, "from scratch\ncmd [\"/x\"]\n").unwrap();
        lint_it(None).unwrap();
        assert!(lint_it(Some("warnings")).is_err(), "it runs as root");
        assert!(layout(true).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "from scratch\ncmd [\"/x\"]\n");
        layout(false).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "FROM scratch\nCMD [\"/x\"]\n");
        layout(true).unwrap();

        std::fs::write(&path, "FORM scratch\n").unwrap();
        assert!(lint_it(None).is_err() && layout(false).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "FORM scratch\n");
    }
}
