//! How a share is written on a command line: `PATH:TAG[,ro][,security=MODEL]...`. What the parts mean is in [`super::config`].

use std::str::FromStr;

use super::config::{CaseHack, Multidevs, SecurityModel, ShareConfig};
use crate::options::{OptionError, OptionList};

/// `PATH:TAG` and what may follow.
///
/// The tag begins behind the last colon of the first part, so a path may have colons. `~/` at its beginning is the shell's affair.
///
/// ```
/// use hvrun_devices::backend::ninep::ShareConfig;
///
/// let share: ShareConfig = "/nix/store:nix-store,ro".parse().unwrap();
/// assert_eq!((share.tag.as_str(), share.readonly), ("nix-store", true));
/// ```
impl FromStr for ShareConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut options = OptionList::parse(text)?;
        let first = options.first("the directory, as in DIR:TAG,")?;
        let (path, tag) = match first.rsplit_once(':') {
            Some((path, tag)) if !path.is_empty() && !tag.is_empty() => (path, tag),
            _ => return Err(OptionError::Missing(format!("the tag behind {first:?}, as in DIR:TAG,"))),
        };
        let mut share = ShareConfig::new(path, tag);
        share.readonly = options.switch("ro")?.unwrap_or(false);
        if let Some(model) = options.value::<SecurityModel>("security", "none")? {
            share.security = model;
        }
        share.squash_to_root = options.switch("squash")?;
        if let Some(on) = options.switch("case-hack")? {
            share.case_hack = if on { CaseHack::On } else { CaseHack::Off };
        }
        if let Some(multidevs) = options.value::<Multidevs>("multidevs", "remap")? {
            share.multidevs = multidevs;
        }
        options.finish()?;
        Ok(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        text.parse::<ShareConfig>().unwrap_err().to_string()
    }

    #[test]
    fn a_path_may_have_colons() {
        let share: ShareConfig = "/a:b/c:src".parse().unwrap();
        assert_eq!((share.path.to_str(), share.tag.as_str()), (Some("/a:b/c"), "src"));
    }

    #[test]
    fn options_reach_the_share() {
        let share: ShareConfig = "/a:t,ro,security=mapped-xattr,squash=on".parse().unwrap();
        assert_eq!(share.security, SecurityModel::MappedXattr);
        assert_eq!((share.readonly, share.squash_to_root), (true, Some(true)));
    }

    #[test]
    fn a_share_without_a_tag_is_refused_with_the_form() {
        for text in ["/a", "/a:", ":t"] {
            assert!(refusal(text).contains("DIR:TAG"), "{text}");
        }
    }

    #[test]
    fn an_unknown_security_model_is_refused_with_the_known_ones() {
        assert!(refusal("/a:t,security=tight").contains("mapped-file"));
    }

    #[test]
    fn an_unknown_option_is_refused_with_the_known_ones() {
        assert!(refusal("/a:t,rw").contains("ro, security"));
    }
}
