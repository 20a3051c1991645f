use std::time::Duration;

use super::*;

const HELLO: &str = "FROM scratch\nENTRYPOINT [\"/hello\"]\n";

pub(crate) fn parse(text: &str) -> Result<Formfile, Vec<Diagnostic>> {
    Formfile::parse("Formfile", text.as_bytes())
}

/// What is wrong with `line` in a Formfile that is otherwise fine.
fn complaint(line: &str) -> String {
    let errors = parse(&format!("{HELLO}{line}\n")).expect_err(line);
    assert_eq!(errors.len(), 1, "{line}: {errors:?}");
    assert_eq!(errors[0].line, 3, "{line}");
    format!("{} | {}", errors[0].message, errors[0].hint.clone().unwrap_or_default())
}

/// What `line` asks for in a Formfile that is otherwise fine.
fn op(line: &str) -> Op {
    let formfile = parse(&format!("{HELLO}{line}\n")).expect(line);
    formfile.stages[0].steps[1].op.clone()
}

fn text(template: &Template) -> String {
    template.expand(&|name| Some(format!("<{name}>"))).expect("every name is known")
}

#[test]
fn every_instruction_means_what_it_says() {
    let Op::Copy(copy) = op("COPY --from=build --chown=app:7 --chmod=0755 a* 'b c' d\\ e $X/f /bin/") else { panic!() };
    let sources: Vec<_> = copy
        .sources
        .iter()
        .map(|source| match source {
            Source::Path(path) => text(path),
            Source::Inline { .. } => panic!("no heredoc"),
        })
        .collect();
    assert_eq!(sources, ["a*", "b c", "d e", "<X>/f"]);
    assert_eq!((text(&copy.destination), copy.chmod, copy.add), ("/bin/".into(), Some(0o755), false));
    assert_eq!(copy.from.as_ref().map(text), Some("build".into()));
    assert_eq!(copy.chown.as_ref().map(text), Some("app:7".into()));

    let Op::Env(env) = op("ENV A=1 B=\"x ${A:-y} \\$\" C='$A'") else { panic!() };
    let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), text(value))).collect();
    assert_eq!(env, [("A", "1".into()), ("B", "x <A> $".into()), ("C", "$A".into())]);
    let Op::Env(env) = op("env MOTTO all of  it") else { panic!() };
    assert_eq!((env[0].0.as_str(), text(&env[0].1)), ("MOTTO", "all of  it".into()));

    let Op::Run(run) = op("RUN --mount=type=cache,target=/c,sharing=locked --mount=type=secret,id=k,env=K,required \
                           --network=none make \\\n  # why\n  all")
    else {
        panic!()
    };
    assert_eq!(run.command, Command::Shell("make all".into()));
    assert_eq!(run.network, Some(Network::None));
    assert_eq!(run.mounts[0].kind, MountKind::Cache { id: "/c".into(), sharing: Sharing::Locked });
    let secret = MountKind::Secret { id: "k".into(), required: true, env: Some("K".into()) };
    assert_eq!((&run.mounts[1].kind, &run.mounts[1].target), (&secret, &None));

    let Op::Healthcheck(Some(health)) =
        op("HEALTHCHECK --interval=1m5s --timeout=3s --start-period=0s --retries=2 CMD [\"/x\"]")
    else {
        panic!()
    };
    assert_eq!(health.command, Command::Exec(vec!["/x".into()]));
    assert_eq!((health.interval, health.retries), (Some(Duration::from_secs(65)), Some(2)));
    assert_eq!(op("HEALTHCHECK none"), Op::Healthcheck(None));
    assert_eq!(op("CMD a && b"), Op::Cmd(Command::Shell("a && b".into())));
    assert_eq!(
        op("RUN [ -f /x ] || true"),
        Op::Run(Run { command: Command::Shell("[ -f /x ] || true".into()), mounts: vec![], network: None })
    );
}

#[test]
fn settings_hold_for_the_file_and_have_aliases() {
    let all = "FROM debian:bookworm AS Build\nNAME web\nCORES 2\nFROM scratch\nCMD [\"/x\"]\nMEM 2G\nSTORAGE 512MiB\nGPU 1\n\
               REPLICAS 3\nRESTART On-Failure\nDESCRIPTION says \"what\" it is\nMODEL org/m:7b\n";
    let formfile = parse(all).unwrap();
    let settings = formfile.settings;
    let numbers = [settings.vcpu, settings.memory_mib, settings.disk_mib, settings.gpu, settings.replicas];
    assert_eq!(numbers.map(|number| number.unwrap().value), [2, 2048, 512, 1, 3]);
    assert_eq!(settings.restart.unwrap().value, Restart::OnFailure);
    assert_eq!(settings.description.unwrap().value, "says \"what\" it is");
    assert_eq!(formfile.stages[0].name.as_deref(), Some("build"));
    let twice = parse(&format!("{HELLO}MEM 64\nMEMORY 64\n")).unwrap_err();
    assert_eq!(twice[0].message, "MEMORY is given twice; it stands in line 3 already");
}

#[test]
fn a_heredoc_is_a_script_a_program_s_input_or_a_file() {
    let run = |line: &str| match op(line) {
        Op::Run(run) => run.command,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        run("RUN <<EOF\nset -e\n# not a comment\n\nmake $X\nEOF"),
        Command::Shell("set -e\n# not a comment\n\nmake $X\n".into())
    );
    assert_eq!(run("RUN <<-EOF\n\tmake\n\tEOF"), Command::Shell("make\n".into()));
    assert_eq!(run("RUN <<EOF\n#!/bin/cat\nx\nEOF"), Command::Script("#!/bin/cat\nx\n".into()));
    assert_eq!(
        run("RUN cat <<A - 3<<'B' >/x\n1\nA\n2\nB"),
        Command::Shell("cat <<A - 3<<'B' >/x\n1\nA\n2\nB\n".into())
    );
    assert_eq!(run("RUN echo $((1<<EOF)) '<<EOF'"), Command::Shell("echo $((1<<EOF)) '<<EOF'".into()));

    let Op::Copy(copy) = op("COPY <<a.conf <<\"b\" c /etc/\nx=$X \\$Y\na.conf\nx=$X\nb") else { panic!() };
    let sources: Vec<_> = copy
        .sources
        .iter()
        .map(|source| match source {
            Source::Inline { name, contents } => format!("{name}:{}", text(contents)),
            Source::Path(path) => text(path),
        })
        .collect();
    assert_eq!(sources, ["a.conf:x=<X> $Y\n", "b:x=$X\n", "c"]);
    assert!(complaint("RUN <<EOF\nmake").starts_with("this heredoc is never closed | end it with a line"));
}

#[test]
fn variables_have_defaults_and_alternatives_and_are_never_nothing_by_mistake() {
    let expand = |word: &str, known: &[(&str, &str)]| {
        let Op::Workdir(template) = op(&format!("WORKDIR {word}")) else { panic!() };
        let known: Vec<_> = known.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        template.expand(&|name| known.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
    };
    assert_eq!(expand("/a/$V/b", &[("V", "1")]).unwrap(), "/a/1/b");
    assert_eq!(expand("/${V:-x}${V:+y}", &[("V", "1")]).unwrap(), "/1y");
    assert_eq!(expand("/${V:-x${W:-z}}${V:+y}", &[("V", "")]).unwrap(), "/xz");
    assert_eq!(expand("\"/${V:-a b}\"", &[]).unwrap(), "/a b");
    let fault = expand("/a/$V", &[]).unwrap_err();
    assert_eq!(fault.message, "the variable `V` is not set");
    assert_eq!(fault.span, Span { start: HELLO.len() + 11, end: HELLO.len() + 13 });
    let huge = "x".repeat(40_000);
    assert!(expand("$V$V", &[("V", &huge)]).unwrap_err().message.contains("more than 65536 bytes"));
    for (word, message) in [
        ("$5", "the `$` names no variable"),
        ("${V", "this is no variable"),
        ("${V:?x}", "this is no variable"),
        ("${V:-a b}", "a space stands in a variable that is not in quotes"),
        (&"${A:-".repeat(10), "variables stand in variables more than 8 deep"),
    ] {
        assert!(complaint(&format!("WORKDIR {word}")).starts_with(message), "{word}");
    }
}

#[test]
fn a_diagnostic_shows_file_line_column_text_caret_and_hint() {
    let errors = parse("FROM scratch\nENTRYPOINT [\"/a\"]\n\tCOPPY hello /hello\n").unwrap_err();
    assert_eq!(errors[0].to_string(), "unknown instruction `COPPY`");
    let expected = "  \
x unknown instruction `COPPY`
   ,-[Formfile:3:2]
 3 |  COPPY hello /hello
   :  ^^^^^
   `----
  help: did you mean `COPY`?";
    assert_eq!(errors[0].plain(), expected);
    assert!(errors[0].fancy(80).contains("\u{1b}["));
}

#[test]
fn the_excerpt_of_a_long_line_is_a_window_around_the_mark() {
    let errors = parse(&format!("{HELLO}ENV A={} 9=x\n", "y".repeat(5000))).unwrap_err();
    let shown = errors[0].plain();
    assert!(shown.lines().all(|line| line.chars().count() < 140), "{shown}");
    assert_eq!(errors[0].column, 5008);
    assert!(shown.contains("9=x") && shown.ends_with("starts with no digit"), "{shown}");
}

#[test]
fn every_error_is_reported_in_the_order_of_the_file_and_a_thousand_at_most() {
    let errors = parse("FROM debian x y\nCOPY ../a /b\nEXPOSE 99999\nMEMORY 1\nMEMORY 64\nFOO\n").unwrap_err();
    let lines: Vec<_> = errors.iter().map(|e| e.line).collect();
    assert_eq!(lines, [1, 2, 3, 4, 5, 6]);
    assert_eq!(parse(&"X\n".repeat(100_000)).unwrap_err().len(), 1000);
}

#[test]
fn what_is_wrong_with_one_line_is_said_with_what_to_do() {
    for (line, expected) in [
        ("SHELL [\"/bin/bash\"]", "SHELL is not supported | the shell is `/bin/sh -c`"),
        ("HELTHCHEK NONE", "unknown instruction `HELTHCHEK` | did you mean `HEALTHCHECK`?"),
        ("COPY a", "COPY needs a source and a destination | "),
        ("COPY a b /c", "several sources need a directory to go into | write `/c/`"),
        ("COPY a/../b /c", "the path contains `..` | write it without"),
        ("COPY /a /c", "the source is an absolute path | sources are relative to the build context; write `a`"),
        ("COPY [z /c", "`[z` is no glob"),
        ("ADD http://x/y /c", "the source is a URL | "),
        ("ADD --from=a b /c", "ADD knows no flag `--from` | "),
        ("COPY --chwon=1 a /c", "COPY knows no flag `--chwon` | did you mean `--chown`?"),
        ("COPY --chmod=u+x a /c", "`u+x` is no mode | write octal digits"),
        ("COPY --from=a --from=b c /c", "--from is given twice | "),
        ("RUN --mount=type=bind,target=/x make", "RUN knows no such mount | "),
        ("RUN --mount=type=cache make", "this mount has no target | "),
        ("RUN --mount=type=cache,taget=/x make", "this mount knows no option `taget` | did you mean `target`?"),
        ("RUN --network=host make", "RUN knows no such network | "),
        ("RUN --network=none", "RUN has no command | "),
        ("INSTALL -y curl", "`-y` names no Debian package | "),
        ("INSTALL curl=", "`curl=` names no Debian package | "),
        ("ENV A=1 B", "ENV needs `name=value` here | for example `ENV LOG=info`"),
        ("ENV 1A=1", "`1A` cannot name an environment variable | "),
        ("ENV A=\"x", "this quote is never closed | end the value with `\"`"),
        ("ENV A=\\n", "`\\n` is no escape | for a backslash write `\\\\`"),
        ("LABEL =x", "the label has no name | "),
        ("USER Root", "`Root` names no user | "),
        ("USER 4294967295", "`4294967295` names no user | "),
        ("USER a b", "USER takes one argument | "),
        ("EXPOSE 0", "`0` is no port | "),
        ("EXPOSE 80/sctp", "`sctp` is no protocol that EXPOSE knows | write `80/tcp` or `80/udp`"),
        ("VOLUME data", "the path of a volume is relative | write `/data`"),
        ("STOPSIGNAL SIGFOO", "`SIGFOO` is no signal | "),
        ("HEALTHCHECK --interval=500ms CMD x", "`500ms` is no duration that can be kept | "),
        ("HEALTHCHECK x", "HEALTHCHECK needs `CMD` and a command, or `NONE` | "),
        ("VCPU 65", "65 is out of range | it is from 1 to 64"),
        ("MEMORY 512MB", "`MB` counts in thousands | "),
        ("MEMORY 1K", "`1K` is no size | "),
        ("DISK 99999999999999999999", "99999999999999999999 is out of range | it is from 16 to 1048576 MiB"),
        ("RESTART sometimes", "RESTART does not know this | "),
        ("NAME Web", "this cannot name a package | "),
        ("REPLICAS 0", "0 is out of range | "),
        ("WORKDIR", "WORKDIR has no argument | for example `WORKDIR /app`"),
        ("ENTRYPOINT [\"/b\"]", "ENTRYPOINT is given twice; it stands in line 2 already | keep one of them"),
        ("CMD [\"a\", 1]", "this is not a JSON array of strings | "),
        ("USER a\\", "the instruction is continued with `\\`, but a blank line follows | "),
        ("USER a\u{1b}[2J", "the control character U+001B is not allowed here | remove it"),
        ("USER a\0", "the control character U+0000 is not allowed here | remove it"),
    ] {
        assert!(complaint(line).starts_with(expected), "{line:?}: {}", complaint(line));
    }
}

#[test]
fn a_stage_has_a_base_and_the_last_one_something_to_start() {
    let messages = |text| parse(text).expect_err(text).into_iter().map(|e| e.message).collect::<Vec<_>>();
    assert_eq!(messages(""), ["FROM is missing"]);
    assert_eq!(messages("USER 1\nFROM scratch\nCMD [\"/a\"]"), ["USER stands before FROM"]);
    assert_eq!(messages("FROM scratch"), ["ENTRYPOINT is missing: the package starts nothing"]);
    assert_eq!(messages("FROM scratch\nENTRYPOINT"), ["ENTRYPOINT has no argument"]);
    assert_eq!(messages("FROM a AS b\nFROM c AS B"), ["the stage `b` stands in line 1 already"]);
    assert_eq!(messages("FROM --platform=x a"), ["FROM takes no flags"]);
    let formfile = parse("ARG V=1\nFROM debian:${V}\nENTRYPOINT a\nFROM x AS y\nENTRYPOINT b").unwrap();
    assert_eq!((formfile.args[0].name.as_str(), formfile.stages.len()), ("V", 2));
}

#[test]
fn lines_and_files_that_are_too_long_or_not_utf8_are_refused() {
    let long = format!("{HELLO}ENV A={}\n", "x".repeat(64 << 10));
    assert!(parse(&long).unwrap_err()[0].message.starts_with("the line has 65542 bytes"));
    let huge = "#".repeat((1 << 20) + 1);
    assert!(parse(&huge).unwrap_err()[0].message.starts_with("the file has 1048577 bytes"));
    let latin = b"FROM scratch\nENTRYPOINT [\"/a\"]\nENV A=gr\xfc\xdfe\n";
    let errors = Formfile::parse("Formfile", latin).unwrap_err();
    assert_eq!((errors[0].line, errors[0].column), (3, 9));
}

#[test]
fn every_lint_is_found_where_it_stands_and_nowhere_else() {
    let warned = |text: &str| {
        let found = lint("Formfile", text.as_bytes()).expect(text);
        found.iter().map(|warning| (warning.lint.unwrap_or(""), warning.line)).collect::<Vec<_>>()
    };
    let bad = "\
ARG UNUSED
FROM debian:bookworm AS tools
FROM example.org/base
COPY . /src/
INSTALL gcc
RUN apt-get install -y make
WORKDIR src
ARG API_TOKEN
ADD a /b
EXPOSE 80 80/tcp
MEMORY 64
ENTRYPOINT /run
";
    let expected = [
        ("unused-arg", 1),
        ("unused-stage", 2),
        ("moving-tag", 3),
        ("runs-as-root", 3),
        ("cache-lost", 4),
        ("apt-in-run", 6),
        ("relative-workdir", 7),
        ("secret-in-env", 8),
        ("unused-arg", 8),
        ("add-copies", 9),
        ("port-twice", 10),
        ("small-memory", 11),
        ("shell-entrypoint", 12),
    ];
    assert_eq!(warned(bad), expected);
    for (name, _) in LINTS {
        assert!(expected.iter().any(|(found, _)| found == name), "{name}");
    }
    let good = "\
ARG SUITE=bookworm
FROM debian:${SUITE} AS build
ARG FLAGS
INSTALL gcc
COPY . /src/
RUN make $FLAGS
FROM scratch
COPY --from=build /src/x /x
USER 1000
ENV TOKEN_FILE=/run/token
ADD site.tar.gz /srv/
EXPOSE 80 80/udp
MEMORY 64
ENTRYPOINT [\"/x\"]
";
    assert_eq!(warned(good), []);
}

#[test]
fn the_canonical_form_keeps_what_only_looks_like_space() {
    let text = "\n\n# top   \nfrom scratch\n\n\n\ncmd   [ \"/a  b\" ]\nmem  1G\nrun a  'b \\\n   c' \\\n# why  so\n  d <<E\n  x\n\n\nE\n";
    let expected = "# top\nFROM scratch\n\nCMD [ \"/a  b\" ]\nMEMORY 1G\nRUN a  'b \\\n   c' \\\n    # why  so\n    d <<E\n  x\n\n\nE\n";
    assert_eq!(format("Formfile", text.as_bytes()).unwrap(), expected);
}

#[test]
fn formignore_leaves_out_what_is_below_and_takes_in_again() {
    let ignore = Ignore::parse(".formignore", b"# built\n/target/\n**/*.log\n!keep.log\ndocs\n!docs/a/**\n").unwrap();
    for (path, excluded) in [
        ("target", true),
        ("target/x/y", true),
        ("src/target", false),
        ("a.log", true),
        ("b/c.log", true),
        ("keep.log", false),
        ("b/keep.log", true),
        ("docs/b", true),
        ("docs/a/b", false),
    ] {
        assert_eq!(ignore.excludes(path), excluded, "{path}");
    }
    let errors = Ignore::parse(".formignore", b"a\n../b\n[\n").unwrap_err();
    assert_eq!(errors.iter().map(|error| error.line).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn what_a_message_quotes_cannot_speak_to_a_terminal_nor_fill_it() {
    let quoted = complaint("VOLUME [\"\\u001b[2Jx\"]");
    assert!(!quoted.contains('\u{1b}'), "{quoted:?}");
    assert!(complaint(&format!("USER A{}", "x".repeat(10_000))).len() < 1000);
}
