//! Folders of images: which files they hold, what each shows, and the part of them that calibration may see; models for
//! them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lacuna_format::{Checkpoint, ImageProcessor};
use lacuna_model::{Execution, VisionConfig};
use serde::Serialize;

use crate::device::Device;
use crate::models::VisionModel;

/// One image in so many belongs to the calibration split.
const CALIBRATION_SHARE: usize = 5;

/// Part of a folder of images. With the files in the order of their names, every fifth is for calibration, from the first
/// on, and the others are held out for evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// everything
    All,
    /// what calibration draws from
    Calibration,
    /// what it never sees
    HeldOut,
}

impl Split {
    /// Name as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Calibration => "calibration",
            Self::HeldOut => "held-out",
        }
    }

    fn holds(self, index: usize) -> bool {
        let calibration = index.is_multiple_of(CALIBRATION_SHARE);
        match self {
            Self::All => true,
            Self::Calibration => calibration,
            Self::HeldOut => !calibration,
        }
    }
}

/// JPEG and PNG files of a folder and of the folders in it, by name.
pub fn files(folder: &Path, split: Split) -> Result<Vec<PathBuf>> {
    if folder.is_file() {
        bail!("{}: is a file; give a folder of images", folder.display());
    }
    let mut files = vec![];
    for path in entries(folder)? {
        if path.is_dir() {
            files.extend(entries(&path)?.into_iter().filter(|path| is_image(path)));
        } else if is_image(&path) {
            files.push(path);
        }
    }
    files.sort();
    let files: Vec<PathBuf> = files.into_iter().enumerate().filter(|(i, _)| split.holds(*i)).map(|(_, f)| f).collect();
    if files.is_empty() {
        bail!("{}: holds no .jpg, .jpeg or .png files ({}); give a folder with some", folder.display(), split.name());
    }
    Ok(files)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    entries.map(|entry| Ok(entry.with_context(|| folder.display().to_string())?.path())).collect()
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    ["jpg", "jpeg", "png"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// The class that an image's file name says it shows, else the name of its folder: a number, or a label.
pub fn class_of(path: &Path, labels: &[String]) -> Result<usize> {
    let stem = path.file_stem().and_then(|name| name.to_str());
    let folder = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    let named = |name: &str| {
        let number = name.parse().ok().filter(|&class| class < labels.len());
        number.or_else(|| labels.iter().position(|label| label == name))
    };
    stem.and_then(named).or_else(|| folder.and_then(named)).with_context(|| {
        let classes = labels.len();
        let rule = "the file or its folder must be named by the number of its class or its label";
        format!("{}: its class is not known; {rule} (the model has {classes})", path.display())
    })
}

/// What is done to images before a model sees them. Refuses a checkpoint whose model takes another size than that makes.
pub fn processor(model: &Path, config: &VisionConfig) -> Result<ImageProcessor> {
    let processor = ImageProcessor::open(model)?;
    let ([height, width], [tall, wide]) = (processor.size(), config.image);
    let (made, taken) = ([3, height, width], [config.channels, tall, wide]);
    if made != taken {
        let sizes =
            format!("its image processor makes {made:?} (channels, height, width), config.json asks for {taken:?}");
        bail!("{}: {sizes}; copy the preprocessor_config.json of the original checkpoint here", model.display());
    }
    Ok(processor)
}

/// An image classifier, and what is done to images before it sees them. Refuses a checkpoint without classes.
pub fn classifier<'a>(
    device: &Device,
    checkpoint: &'a Checkpoint,
    config: &VisionConfig,
    execution: Execution,
) -> Result<(ImageProcessor, VisionModel<'a>)> {
    let dir = checkpoint.dir();
    if config.names.heads.is_empty() {
        bail!("{}: has no classifier; give a checkpoint with one", dir.display());
    }
    Ok((processor(dir, config)?, VisionModel::load(device, checkpoint, config, execution)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_splits_share_nothing_and_leave_nothing_out() {
        for i in 0..23 {
            assert!(Split::All.holds(i));
            assert_ne!(Split::Calibration.holds(i), Split::HeldOut.holds(i));
        }
        assert_eq!((0..500).filter(|&i| Split::Calibration.holds(i)).count(), 100);
    }

    #[test]
    fn classes_come_from_files_or_folders() {
        let labels = ["cat".to_owned(), "dog".to_owned(), "7".to_owned()];
        let class = |path: &str| class_of(Path::new(path), &labels).ok();
        assert_eq!(class("x/0001.jpg"), Some(1));
        assert_eq!(class("x/cat.png"), Some(0));
        assert_eq!(class("dog/picture.png"), Some(1));
        assert_eq!(class("2/picture.png"), Some(2));
        assert_eq!(class("x/0003.jpg"), None);
    }
}
