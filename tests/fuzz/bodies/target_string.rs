//! Targets and addresses: read or refused, never a panic, and what was read says again what was written.

use equipoise::{Address, Channel, Target};

pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let parsed = text.parse::<Target>();
    match &parsed {
        Ok(target) => {
            assert_eq!(target.to_string(), text, "written as it was read");
            let again = target.to_string().parse::<Target>();
            assert_eq!(again.as_ref().ok(), Some(target));
            let scheme = target.scheme();
            assert_eq!(scheme.to_ascii_lowercase(), scheme, "{text:?}");
            assert!(text.ends_with(target.rest()), "{text:?}");
        }
        Err(error) => {
            let said = error.to_string();
            assert!(
                error.is_config() && said.starts_with(&format!("target {text:?}: ")),
                "{said} does not name {text:?}"
            );
        }
    }
    // The front door takes and refuses the same; building asks the resolver as well, and needs no runtime.
    if let Ok(builder) = Channel::builder(&*text) {
        match builder.build() {
            Ok(channel) => {
                assert!(parsed.is_ok(), "{text:?}");
                for endpoint in channel.endpoints() {
                    round_trip(&endpoint.address);
                }
            }
            Err(error) => assert!(error.is_config(), "{text:?}: {error}"),
        }
    }
    match text.parse::<Address>() {
        Ok(address) => round_trip(&address),
        Err(error) => {
            let said = error.to_string();
            assert!(said.contains(&format!("{text:?}")), "{said}");
        }
    }
}

fn round_trip(address: &Address) {
    let again = address.to_string().parse::<Address>();
    assert_eq!(again.as_ref().ok(), Some(address), "{address}");
}
