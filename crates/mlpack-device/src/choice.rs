//! What `--device` says.

use crate::Error;

/// Where rows are merged and encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// A GPU where there is one and the work is worth the way there, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of that number, as the CUDA driver counts them.
    Cuda(u32),
    /// Apple's GPU, for products of adapters' factors.
    Metal,
}

impl Choice {
    /// `auto`, `cpu`, `cuda`, `cuda:N` or `metal`.
    ///
    /// # Errors
    /// [`Error::Choice`] for anything else.
    pub fn parse(text: &str) -> Result<Choice, Error> {
        match text {
            "auto" => Ok(Choice::Auto),
            "cpu" => Ok(Choice::Cpu),
            "cuda" => Ok(Choice::Cuda(0)),
            "metal" => Ok(Choice::Metal),
            _ => {
                let number = text.strip_prefix("cuda:").filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
                let number = number.and_then(|n| n.parse().ok());
                number.map(Choice::Cuda).ok_or_else(|| Error::Choice { found: text.to_owned() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_the_names_of_the_help_text_and_no_others() {
        for (text, choice) in [
            ("auto", Choice::Auto),
            ("cpu", Choice::Cpu),
            ("cuda", Choice::Cuda(0)),
            ("cuda:7", Choice::Cuda(7)),
            ("metal", Choice::Metal),
        ] {
            assert_eq!(Choice::parse(text).unwrap(), choice);
        }
        for text in ["", "CPU", "cuda:", "cuda:-1", "cuda:+1", "cuda:1 ", "cuda:4294967296", "gpu", "metal:0"] {
            let error = Choice::parse(text).unwrap_err();
            assert!(matches!(&error, Error::Choice { found } if found == text), "{error}");
        }
    }
}
