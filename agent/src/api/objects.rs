//! A JSON body as its description has it: a structure is an object.
//!
//! Serde takes a structure from an array of its fields, too, in their order. A client that sends
//! one means something else, and the next version's order may be another. The same holds for
//! variants by their number.

use serde::de::value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer};
use serde::de::{
    DeserializeOwned, Deserializer, Error as _, IntoDeserializer, Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Map, Value};

/// Takes a `T` from a body.
///
/// # Errors
/// What is wrong, after the path to it.
pub fn from_value<T: DeserializeOwned>(
    value: Value,
) -> Result<T, serde_path_to_error::Error<Error>> {
    serde_path_to_error::deserialize(Strict(value))
}

/// A value whose structures are objects, all the way down.
struct Strict(Value);

fn fields(map: Map<String, Value>) -> impl Iterator<Item = (String, Strict)> {
    map.into_iter().map(|(name, value)| (name, Strict(value)))
}

fn unexpected(value: &Value) -> Unexpected<'_> {
    match value {
        Value::Null => Unexpected::Other("null"),
        Value::Bool(value) => Unexpected::Bool(*value),
        Value::Number(_) => Unexpected::Other("a number"),
        Value::String(value) => Unexpected::Str(value),
        Value::Array(_) => Unexpected::Seq,
        Value::Object(_) => Unexpected::Map,
    }
}

impl<'de> Deserializer<'de> for Strict {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.into_iter().map(Strict));
                let value = visitor.visit_seq(&mut items)?;
                items.end()?;
                Ok(value)
            }
            Value::Object(map) => {
                let mut fields = MapDeserializer::new(fields(map));
                let value = visitor.visit_map(&mut fields)?;
                fields.end()?;
                Ok(value)
            }
            plain => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    // Variants with named fields are read as maps.
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(_) => Err(Error::invalid_type(Unexpected::Seq, &visitor)),
            _ => self.deserialize_any(visitor),
        }
    }

    // Serde takes the number of a tagged variant, too.
    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::String(name) => visitor.visit_string(name),
            other => Err(Error::invalid_type(unexpected(&other), &visitor)),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::String(variant) => visitor.visit_enum(variant.into_deserializer()),
            Value::Object(map) if map.len() == 1 => visitor.visit_enum(MapAccessDeserializer::new(
                MapDeserializer::new(fields(map)),
            )),
            other => Err(Error::invalid_type(unexpected(&other), &visitor)),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct ignored_any
    }
}

impl IntoDeserializer<'_, Error> for Strict {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Limits {
        rate: Option<u64>,
        burst: Option<u64>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Source {
        Empty,
        Copy(String),
        Of { pool: String },
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(tag = "by", rename_all = "snake_case")]
    enum Uplink {
        None,
        Bridge { name: String },
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Guest {
        name: String,
        #[serde(default)]
        limits: Vec<Limits>,
        #[serde(default)]
        tags: BTreeMap<String, (i8, bool)>,
        source: Option<Source>,
    }

    fn refusal(value: Value) -> String {
        from_value::<Guest>(value).unwrap_err().to_string()
    }

    #[test]
    fn what_is_described_is_taken() {
        let guest: Guest = from_value(json!({
            "name": "web",
            "limits": [{}, { "rate": null, "burst": u64::MAX }],
            "tags": { "a": [-1, true] },
            "source": { "of": { "pool": "nas" } },
        }))
        .unwrap();
        assert_eq!(guest.limits[1].burst, Some(u64::MAX));
        assert_eq!(guest.tags["a"], (-1, true));
        let pool = "nas".to_owned();
        assert_eq!(guest.source, Some(Source::Of { pool }));
        for (source, expected) in [
            (json!("empty"), Source::Empty),
            (json!({ "copy": "db" }), Source::Copy("db".to_owned())),
        ] {
            let guest: Guest = from_value(json!({ "name": "", "source": source })).unwrap();
            assert_eq!(guest.source, Some(expected));
        }
    }

    #[test]
    fn structure_in_an_array_is_refused_by_its_path() {
        assert!(refusal(json!(["web"])).contains("invalid type: sequence"));
        let nested = refusal(json!({ "name": "web", "limits": [{}, [null, null]] }));
        assert!(
            nested.starts_with("limits[1]: invalid type: sequence"),
            "{nested}"
        );
        let variant = refusal(json!({ "name": "web", "source": { "of": ["nas"] } }));
        assert!(variant.contains("invalid type: sequence"), "{variant}");
    }

    #[test]
    fn variant_is_known_by_its_name_alone() {
        let name = "br0".to_owned();
        let bridge: Uplink = from_value(json!({ "by": "bridge", "name": "br0" })).unwrap();
        assert_eq!(bridge, Uplink::Bridge { name });
        let none = from_value::<Uplink>(json!({ "by": 0 })).unwrap_err();
        assert!(none.to_string().starts_with("by: invalid type"), "{none}");
    }

    #[test]
    fn other_mistakes_are_named_as_ever() {
        assert!(refusal(json!({})).contains("missing field `name`"));
        let unknown = refusal(json!({ "name": "", "limits": [{ "speed": 1 }] }));
        assert!(
            unknown.starts_with("limits[0].speed: unknown field"),
            "{unknown}"
        );
        let kind = refusal(json!({ "name": "", "source": { "of": 1, "copy": "" } }));
        assert!(kind.starts_with("source: invalid type: map"), "{kind}");
        assert!(refusal(json!({ "name": 5 })).contains("expected a string"));
    }
}
