//! What is hashed of a request.

use equipoise::policy::HashOn;

use crate::{hex, ring_hash, rows, text};

#[test]
fn several_hash_policies_make_the_published_hash() {
    let vectors = ring_hash();
    for row in rows(&vectors["request_hash_policies"]) {
        let mut request = http::Request::new(());
        let mut hash_on = HashOn::default();
        for (n, policy) in rows(&row["policies"]).iter().enumerate() {
            let name = format!("x-part-{n}");
            if let Some(value) = policy["value"].as_str() {
                let name = name.parse::<http::HeaderName>().expect("a name");
                let value = value.parse().expect("a value");
                request.headers_mut().insert(name, value);
            }
            hash_on = hash_on.and(HashOn::metadata(name));
            if policy["terminal"] == true {
                hash_on = hash_on.terminal();
            }
        }
        let expected = Some(&row["hash"]).filter(|hash| !hash.is_null()).map(hex);
        assert_eq!(hash_on.hash(&request), expected, "{}", text(&row["name"]));
    }
}
