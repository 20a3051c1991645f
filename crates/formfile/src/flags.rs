use std::time::Duration;

use crate::ast::{Command, Healthcheck, Mount, MountKind, Network, Sharing};
use crate::diagnostic::{Fault, Report, Span};
use crate::keywords::near;
use crate::settings::digits;
use crate::template::Template;
use crate::value;
use crate::words::{Flag, is_name, template};

/// `--from`, `--chown`, `--chmod`.
pub(crate) type CopyFlags = (Option<Template>, Option<Template>, Option<u32>);

/// The flags of COPY and ADD. `None` if one of them is wrong, which is reported.
pub(crate) fn copy(keyword: &str, flags: Vec<Flag>, report: &mut Report<'_>) -> Option<CopyFlags> {
    let known: &[&str] = if keyword == "ADD" { &["--chown", "--chmod"] } else { &["--from", "--chown", "--chmod"] };
    let (mut from, mut chown, mut chmod) = (None, None, None);
    let mut sound = once(&flags, &[], report);
    for flag in &flags {
        let judged = judge(flag, keyword, known, report).and_then(|()| match flag.name.as_str() {
            "--chmod" => {
                chmod = Some(report.take(octal(&flag.value_text(), flag.span))?);
                Some(())
            }
            name => {
                let value = template(flag.value.as_deref()?, report)?;
                if name == "--from" {
                    from = Some(value);
                } else {
                    if let Some(text) = value.literal() {
                        report.take(value::user(text, flag.span))?;
                    }
                    chown = Some(value);
                }
                Some(())
            }
        });
        sound &= judged.is_some();
    }
    sound.then_some((from, chown, chmod))
}

/// The flags of RUN.
pub(crate) fn run(flags: Vec<Flag>, report: &mut Report<'_>) -> Option<(Vec<Mount>, Option<Network>)> {
    let mut mounts = Vec::new();
    let mut network = None;
    let mut sound = once(&flags, &["--mount"], report);
    for flag in &flags {
        let judged = judge(flag, "RUN", &["--mount", "--network"], report).and_then(|()| {
            let text = flag.value_text();
            if flag.name == "--mount" {
                mounts.push(report.take(mount(&text, flag.span))?);
                return Some(());
            }
            network = Some(match text.as_str() {
                "default" => Network::Default,
                "none" => Network::None,
                _ => {
                    report.error_with_hint(
                        flag.span,
                        "RUN knows no such network",
                        "write `--network=default` or `--network=none`",
                    );
                    return None;
                }
            });
            Some(())
        });
        sound &= judged.is_some();
    }
    sound.then_some((mounts, network))
}

/// The flags of HEALTHCHECK; the command is not among them.
pub(crate) fn health(flags: Vec<Flag>, report: &mut Report<'_>) -> Option<Healthcheck> {
    let mut health = Healthcheck {
        command: Command::Shell(String::new()),
        interval: None,
        timeout: None,
        start_period: None,
        retries: None,
    };
    let known = ["--interval", "--timeout", "--start-period", "--retries"];
    let mut sound = once(&flags, &[], report);
    for flag in &flags {
        let judged = judge(flag, "HEALTHCHECK", &known, report).and_then(|()| {
            let text = flag.value_text();
            match flag.name.as_str() {
                "--interval" => health.interval = Some(report.take(seconds(&text, 1, flag.span))?),
                "--timeout" => health.timeout = Some(report.take(seconds(&text, 1, flag.span))?),
                "--start-period" => health.start_period = Some(report.take(seconds(&text, 0, flag.span))?),
                _ => match digits(&text) {
                    Some(number @ 1..=100) => health.retries = u32::try_from(number).ok(),
                    _ => {
                        report.error_with_hint(
                            flag.span,
                            "this is no number of retries",
                            "write a number from 1 to 100",
                        );
                        return None;
                    }
                },
            }
            Some(())
        });
        sound &= judged.is_some();
    }
    sound.then_some(health)
}

/// Reports flags that are given twice, apart from those that may be.
fn once(flags: &[Flag], several: &[&str], report: &mut Report<'_>) -> bool {
    let mut seen: Vec<&str> = Vec::new();
    let mut sound = true;
    for flag in flags {
        if seen.contains(&flag.name.as_str()) && !several.contains(&flag.name.as_str()) {
            report.error_with_hint(flag.span, format!("{} is given twice", short(&flag.name)), "keep one of them");
            sound = false;
        } else if seen.len() < 16 {
            seen.push(&flag.name);
        }
    }
    sound
}

/// Reports a flag that `keyword` does not know, or that has no value.
fn judge(flag: &Flag, keyword: &str, known: &[&str], report: &mut Report<'_>) -> Option<()> {
    if !known.contains(&flag.name.as_str()) {
        let hint = match near(&flag.name, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("its flags are {}", known.join(", ")),
        };
        report.error_with_hint(flag.span, format!("{keyword} knows no flag `{}`", short(&flag.name)), hint);
        return None;
    }
    if flag.value.as_ref().is_none_or(Vec::is_empty) {
        let name = &flag.name;
        report.error_with_hint(flag.span, format!("{name} has no value"), format!("write `{name}=...`"));
        return None;
    }
    Some(())
}

fn short(name: &str) -> &str {
    crate::keywords::shortened(name)
}

fn octal(text: &str, span: Span) -> Result<u32, Fault> {
    let fits = (1..=5).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if fits && mode <= 0o7777 => Ok(mode),
        _ => Err(Fault::new(
            span,
            format!("`{}` is no mode", short(text)),
            "write octal digits, such as `755` or `0644`",
        )),
    }
}

/// Go's durations, as Docker takes them: `30s`, `1m30s`; here of whole seconds.
fn seconds(text: &str, least: u64, span: Span) -> Result<Duration, Fault> {
    let wrong = || {
        let hint = format!("write whole seconds, from {least}s to 86400s, such as `30s` or `1m30s`");
        Fault::new(span, format!("`{}` is no duration that can be kept", short(text)), hint)
    };
    let mut total = 0_u64;
    let mut rest = text;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number = digits(rest.get(..end).unwrap_or_default()).ok_or_else(wrong)?;
        let unit = rest.get(end..).unwrap_or_default();
        let unit_end = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let factor = match unit.get(..unit_end) {
            Some("h") => 3600,
            Some("m") => 60,
            Some("s") => 1,
            _ => return Err(wrong()),
        };
        total = total.saturating_add(number.saturating_mul(factor));
        rest = unit.get(unit_end..).unwrap_or_default();
    }
    if (least..=86_400).contains(&total) { Ok(Duration::from_secs(total)) } else { Err(wrong()) }
}

#[derive(Default)]
struct Options<'f> {
    target: Option<&'f str>,
    id: Option<&'f str>,
    sharing: Option<Sharing>,
    size: Option<u64>,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    required: bool,
    env: Option<&'f str>,
}

/// `type=cache,target=/var/cache/apt,...`
fn mount(text: &str, span: Span) -> Result<Mount, Fault> {
    let pairs: Vec<(&str, Option<&str>)> = text
        .split(',')
        .map(|pair| pair.split_once('=').map_or((pair, None), |(key, value)| (key, Some(value))))
        .collect();
    let kind = pairs.iter().find(|(key, _)| *key == "type").and_then(|&(_, value)| value);
    let known: &[&str] = match kind {
        Some("cache") => &["type", "target", "id", "sharing", "mode", "uid", "gid"],
        Some("secret") => &["type", "target", "id", "required", "env", "mode", "uid", "gid"],
        Some("tmpfs") => &["type", "target", "size"],
        _ => {
            let hint = "write `type=cache`, `type=secret` or `type=tmpfs`; for files of a stage, use COPY";
            return Err(Fault::new(span, "RUN knows no such mount", hint));
        }
    };
    if text.contains(['$', '"', '\'', '\\']) {
        return Err(Fault::new(span, "variables and quotes mean nothing in a mount", "write the value out"));
    }

    let mut options = Options::default();
    let mut seen: Vec<&str> = Vec::new();
    for (key, value) in pairs {
        let key = match key {
            "dst" | "destination" => "target",
            key => key,
        };
        if !known.contains(&key) {
            let hint = match near(key, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("its options are {}", known.join(", ")),
            };
            return Err(Fault::new(span, format!("this mount knows no option `{}`", short(key)), hint));
        }
        if seen.contains(&key) {
            return Err(Fault::new(span, format!("the option `{key}` is given twice"), "keep one of them"));
        }
        seen.push(key);
        options.set(key, value, span)?;
    }
    options.finish(kind.unwrap_or_default(), span)
}

impl<'f> Options<'f> {
    fn set(&mut self, key: &str, value: Option<&'f str>, span: Span) -> Result<(), Fault> {
        let wrong = |what: &str| Fault::new(span, format!("the option `{key}` of this mount is wrong"), what);
        if key == "required" {
            self.required = match value {
                None | Some("true") => true,
                Some("false") => false,
                Some(_) => return Err(wrong("write `required` or `required=false`")),
            };
            return Ok(());
        }
        let value = value.filter(|value| !value.is_empty()).ok_or_else(|| wrong("give it a value"))?;
        let id = |value: &str| value.parse::<u32>().ok().filter(|&id| id != u32::MAX);
        match key {
            "target" => {
                value::package_path(value, "/", span)?;
                self.target = Some(value);
            }
            "id" => self.id = Some(value),
            "sharing" => {
                self.sharing = Some(match value {
                    "shared" => Sharing::Shared,
                    "private" => Sharing::Private,
                    "locked" => Sharing::Locked,
                    _ => return Err(wrong("write `shared`, `private` or `locked`")),
                });
            }
            "mode" => self.mode = Some(octal(value, span)?),
            "uid" => self.uid = Some(id(value).ok_or_else(|| wrong("write a number"))?),
            "gid" => self.gid = Some(id(value).ok_or_else(|| wrong("write a number"))?),
            "env" if is_name(value) => self.env = Some(value),
            "env" => return Err(wrong("name an environment variable")),
            "size" => self.size = Some(bytes(value).ok_or_else(|| wrong("write bytes, or a number with k, m or g"))?),
            _ => {}
        }
        Ok(())
    }

    fn finish(self, kind: &str, span: Span) -> Result<Mount, Fault> {
        let target = self.target.map(str::to_owned);
        let missing = |what: &str| Fault::new(span, format!("this mount has no {what}"), format!("add `{what}=...`"));
        let (kind, target) = match kind {
            "cache" => {
                let target = target.ok_or_else(|| missing("target"))?;
                let id = self.id.unwrap_or(&target).to_owned();
                (MountKind::Cache { id, sharing: self.sharing.unwrap_or_default() }, Some(target))
            }
            "tmpfs" => (MountKind::Tmpfs { size: self.size }, Some(target.ok_or_else(|| missing("target"))?)),
            _ => {
                let id = self.id.ok_or_else(|| missing("id"))?;
                if !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) || id.starts_with('.') {
                    let hint = "it has letters, digits, `_`, `-` and `.`, and does not start with `.`";
                    return Err(Fault::new(span, "the `id` names no secret", hint));
                }
                let default = self.env.is_none().then(|| format!("/run/secrets/{id}"));
                let env = self.env.map(str::to_owned);
                (MountKind::Secret { id: id.to_owned(), required: self.required, env }, target.or(default))
            }
        };
        Ok(Mount { kind, target, mode: self.mode, uid: self.uid, gid: self.gid, span })
    }
}

fn bytes(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return None,
    };
    digits(number)?.checked_mul(factor).filter(|&bytes| bytes > 0)
}
