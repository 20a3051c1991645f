//! Files of resources: YAML, of which JSON is a part, with `---` between several.

use std::io::Read as _;
use std::path::Path;

use serde::Deserialize as _;
use serde_json::Value;

use crate::error::Error;

/// A resource and where it stands, for messages: `app.yaml, document 2`.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) place: String,
    pub(crate) value: Value,
}

pub(crate) fn read(path: &Path) -> Result<Vec<Document>, Error> {
    let (name, text) = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(Error::file("standard input"))?;
        ("standard input".to_owned(), text)
    } else {
        (path.display().to_string(), std::fs::read_to_string(path).map_err(Error::file(path))?)
    };
    parse(&name, &text)
}

fn parse(name: &str, text: &str) -> Result<Vec<Document>, Error> {
    let mut documents = Vec::new();
    for (index, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        // The error has line and column, of the whole file. As YAML first: of a key that is there twice, JSON would
        // take the last.
        let yaml = serde_yaml_ng::Value::deserialize(document);
        let yaml = yaml.map_err(|error| Error::Usage(format!("{name}: {error}")))?;
        let value = serde_json::to_value(yaml).map_err(|error| Error::Usage(format!("{name}: {error}")))?;
        if !value.is_null() {
            documents.push(Document { place: format!("{name}, document {}", index + 1), value });
        }
    }
    if documents.is_empty() {
        return Err(Error::Usage(format!("{name}: there is no resource in it")));
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_documents_are_told_apart_and_empty_ones_left_out() {
        let found = parse("f", "kind: A\n---\n---\nkind: B\n").unwrap();
        let places: Vec<&str> = found.iter().map(|document| document.place.as_str()).collect();
        assert_eq!(places, ["f, document 1", "f, document 3"]);
        assert_eq!(parse("f", "{\"kind\": \"A\"}").unwrap()[0].value["kind"], "A");
    }

    #[test]
    fn what_is_no_yaml_is_refused_with_its_line() {
        let said = parse("app.yaml", "kind: A\nspec: [1, 2\nx: y\n").unwrap_err().to_string();
        assert!(said.contains("app.yaml") && said.contains("line"), "{said}");
        let twice = parse("f", "kind: A\nname: a\nname: b\n").unwrap_err().to_string();
        assert!(twice.contains("duplicate") && twice.contains("name"), "{twice}");
        assert!(parse("f", "---\n").unwrap_err().to_string().contains("no resource"));
    }
}
