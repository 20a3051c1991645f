//! What holds for every file, whatever stands in it.

use proptest::prelude::*;

use super::*;

/// The tree without its places.
fn meaning(formfile: &Formfile) -> String {
    let text = format!("{formfile:?}");
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("Span {") {
        out.push_str(before);
        rest = after.split_once('}').map_or("", |(_, after)| after);
    }
    out + rest
}

fn holds(text: &[u8]) -> Result<(), TestCaseError> {
    let inside = |span: Span| {
        span.start <= span.end
            && span.end <= text.len()
            && str::from_utf8(text)
                .is_ok_and(|text| text.is_char_boundary(span.start) && text.is_char_boundary(span.end))
                | str::from_utf8(text).is_err()
    };
    match Formfile::parse("Formfile", text) {
        Err(errors) => {
            prop_assert!((1..=1000).contains(&errors.len()));
            prop_assert!(errors.windows(2).all(|pair| pair[0].span.start <= pair[1].span.start));
            for error in &errors {
                prop_assert!(inside(error.span), "{error:?}");
                prop_assert!(error.plain().chars().all(|c| c == '\n' || !c.is_control()));
            }
            prop_assert_eq!(format("Formfile", text).err().map(|found| found.len()), Some(errors.len()));
        }
        Ok(formfile) => {
            for step in formfile.stages.iter().flat_map(|stage| &stage.steps) {
                prop_assert!(inside(step.span));
            }
            for warning in lint("Formfile", text).unwrap() {
                prop_assert!(inside(warning.span));
                prop_assert!(LINTS.iter().any(|(name, _)| Some(*name) == warning.lint));
            }
            let once = format("Formfile", text).unwrap();
            let again = Formfile::parse("Formfile", once.as_bytes());
            prop_assert!(again.is_ok(), "{once:?}: {again:?}");
            prop_assert_eq!(meaning(&formfile), meaning(&again.unwrap()), "{}", once);
            prop_assert_eq!(&once, &format("Formfile", once.as_bytes()).unwrap());
        }
    }
    Ok(())
}

/// A word, or a separator, as it may stand in arguments.
fn token() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "[a-z0-9/.]{1,6}",
        3 => Just(" ".to_owned()),
        1 => Just("  ".to_owned()),
        1 => Just(" \\\n".to_owned()),
        1 => Just("\\\n  ".to_owned()),
        1 => Just(" \\\n  # a comment  here\n\t".to_owned()),
        1 => "\"[a-z $]{0,5}\"",
        1 => "'[a-z \\\\]{0,5}'",
        1 => "\\$[A-Z]{1,2}",
        1 => "\\$\\{[A-Z](:[-+][a-z\"]{0,3})?\\}",
        1 => "[A-Z]=[a-z]{0,3}",
        1 => "[$\\\\\"'`\\[\\],(){}<#ü]",
    ]
}

fn instruction() -> impl Strategy<Value = String> {
    let keyword = prop_oneof![
        9 => prop::sample::select(KEYWORDS).prop_map(|keyword| keyword.name.to_owned()),
        1 => "[A-Za-z]{1,6}",
    ];
    let free = (keyword, "[ \t]{1,2}", prop::collection::vec(token(), 0..8))
        .prop_map(|(keyword, space, tokens)| format!("{keyword}{space}{}", tokens.concat()));
    let known = prop::sample::select(vec![
        "from debian:bookworm as build",
        "RUN  a   b \\\n\tc  'd \\\n  e'",
        "run <<EOF\n  x $Y\n\n# no comment\nEOF",
        "COPY <<-\"A\" b  /c/\n\tx\n\tA",
        "env  A=1   B=\"x  y\" \\\n C=3",
        "ENV A  b   c",
        "CMD  [ \"a\" ,  \"b\" ]",
        "healthcheck   --interval=5s  --retries=2  CMD  x  y",
        "HEALTHCHECK none",
        "mem 1G",
        "Cores 2",
        "DISK  64",
        "description  a  b \\\n   c",
        "LABEL a=b",
        "EXPOSE 80   81/udp",
        "volume [\"/a\"]",
        "RUN echo $(x \\\n   y)",
        "RUN --mount=type=cache,target=/c \\\n  --network=none \\\n  make",
        "\n\n# a comment   ",
        "ARG X=${Y:-z}",
        "copy --from=0  --chown=1:1 a*  \\\n b /c/",
        "USER  app:app",
        "Workdir a\\ b",
        "stopsignal int",
        "INSTALL  a1=1  b2",
        "RUN cat <<E >/x && \\\n true\nE",
        "RUN \\\n  a",
        "restart never",
        "REPLICAS 2",
        "name web",
        "MODEL a/b",
        "GPU 1",
    ])
    .prop_map(str::to_owned);
    prop_oneof![free, known]
}

fn cases(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig {
        cases: asked.unwrap_or(cases),
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(7),
        ..Default::default()
    }
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        holds(&bytes)?;
        let _ = Ignore::parse(".formignore", &bytes);
    }

    #[test]
    fn any_instructions(lines in prop::collection::vec(instruction(), 0..10), end in "(\n|\r\n)") {
        let text = format!("FROM scratch\n{}\nENTRYPOINT [\"/x\"]\n", lines.join(&end));
        holds(text.as_bytes())?;
    }

    #[test]
    fn one_instruction_that_may_hold(line in instruction()) {
        holds(format!("FROM scratch\nCMD [\"/x\"]\n{line}").as_bytes())?;
    }

    #[test]
    fn known_instructions_with_a_byte_changed(
        lines in prop::collection::vec(instruction(), 1..4), at in any::<prop::sample::Index>(), byte in any::<u8>()
    ) {
        let mut text = format!("FROM scratch\nCMD [\"/x\"]\n{}\n", lines.join("\n")).into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        holds(&text)?;
    }
}
