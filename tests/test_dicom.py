"""DICOM films in the state in which people have them: an attribute that cannot be used never refuses a film."""

import io

import numpy as np
import pytest
from conftest import mentions, refuses
from foreign_files import write_dicom
from PIL import Image

from reading import dicom
from reading.images import image_size, is_image_file, read_image

pydicom = pytest.importorskip("pydicom")
FILM = np.arange(600).reshape(20, 30) * 6  # 12 bits
SHOWN = FILM / FILM.max() * 65535
Tag, Raw = pydicom.tag.Tag, pydicom.dataelem.RawDataElement


def write_raw(file, pixels=FILM, photometric="MONOCHROME2", **texts):
    """Write a DICOM film with attributes as bytes, right or not."""
    data = pydicom.dcmread(write_dicom(file, pixels, photometric))
    for name, text in texts.items():
        tag = Tag(name)
        kind = pydicom.datadict.dictionary_VR(tag).split(" ")[0]
        data._dict[tag] = Raw(tag, kind, len(text), text, 0, False, True)
    data.save_as(file)
    return file


def write_colour(file, pixels, photometric, **tags):
    """Write 8-bit pixels (h, w[, 3]) as DICOM."""
    data = pydicom.dcmread(write_dicom(file, FILM, photometric))
    data.BitsAllocated, data.BitsStored, data.HighBit, data.SamplesPerPixel = 8, 8, 7, pixels[0, 0].size
    data.PlanarConfiguration = 0
    data.add_new("PixelData", "OB", pixels.astype(np.uint8).tobytes())
    for name, (kind, value) in tags.items():
        data.add_new(name, kind, value)
    data.save_as(file)
    return file


def write_compressed(file, syntax, content, bits):
    """Write a DICOM film of FILM's size with pixels that are compressed already."""
    data = pydicom.dcmread(write_dicom(file, FILM, bits=bits))
    data.file_meta.TransferSyntaxUID = syntax
    data.BitsAllocated, data.HighBit = 8 * (1 + (bits > 8)), bits - 1
    data.add_new("PixelData", "OB", pydicom.encaps.encapsulate([content]))
    data["PixelData"].is_undefined_length = True
    data.save_as(file)
    return file


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "texts",
    [
        dict(WindowCenter=b"1800", WindowWidth=b"0 "),
        dict(WindowCenter=b"1800", WindowWidth=b"-5"),
        dict(WindowCenter=b"", WindowWidth=b""),
        dict(WindowCenter=b"1800"),
        dict(WindowCenter=b"x ", WindowWidth=b"y "),
        dict(WindowCenter=b"-50000", WindowWidth=b"10"),  # shows nothing
        dict(WindowCenter=b"1797\\10", WindowWidth=b"3595\\0 "),
        dict(WindowCenter=b"10\\1797", WindowWidth=b"0\\3595 "),
        dict(WindowCenter=b"1797", WindowWidth=b"3595", VOILUTFunction=b"NONE"),
        dict(RescaleSlope=b"", RescaleIntercept=b"0 "),
        dict(RescaleSlope=b"2 ", RescaleIntercept=b""),
        dict(RescaleSlope=b"0 ", RescaleIntercept=b"5 "),
        dict(RescaleSlope=b"x ", RescaleIntercept=b"5 "),
        dict(RescaleSlope=b"0.0001", RescaleIntercept=b"0 ", WindowCenter=b".18 ", WindowWidth=b".36 "),
        dict(PixelSpacing=b"0\\0 "),
        dict(PixelSpacing=b"", PixelPaddingValue=b""),
        dict(PixelSpacing=b"a\\b "),
        dict(PixelSpacing=b"0.1 "),
        dict(PixelSpacing=b"1e9\\1e9 "),
        dict(PhotometricInterpretation=b"monochrome2 "),
        dict(NumberOfFrames=b"x "),
        dict(PhotometricInterpretation=b""),
    ],
)
def test_an_attribute_that_cannot_be_used_never_refuses_a_film(tmp_path, texts):
    read = dicom.read(write_raw(tmp_path / "film", **texts))
    assert np.abs(read.image - SHOWN).max() < 400 and read.spacing is None


@pytest.mark.parametrize("name", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_table_without_data_is_ignored_with_a_note(tmp_path, name):
    item = pydicom.Dataset()
    item.LUTDescriptor = [10, 0, 16]
    for content in ([], [item]):
        data = pydicom.dcmread(write_dicom(tmp_path / "film", FILM))
        setattr(data, name, content)
        data.save_as(tmp_path / "film")
        read = dicom.read(tmp_path / "film")
        assert np.abs(read.image - SHOWN).max() <= 1 and len(read.notes) == len(content)


@pytest.mark.parametrize("name", ["SamplesPerPixel", "PhotometricInterpretation", "PixelRepresentation", "BitsStored"])
def test_an_absent_attribute_takes_its_usual_value_with_a_note(tmp_path, name):
    data = pydicom.dcmread(write_dicom(tmp_path / "film", FILM))
    delattr(data, name)
    data.save_as(tmp_path / "film")
    read = dicom.read(tmp_path / "film")
    assert np.abs(read.image - SHOWN).max() <= 1 and mentions(read.notes[0], "film", name)


@pytest.mark.parametrize("stored", [0, 17])
def test_an_impossible_number_of_stored_bits_is_replaced_with_a_note(tmp_path, stored):
    data = pydicom.dcmread(write_dicom(tmp_path / "film", FILM))
    data.BitsStored = stored
    data.save_as(tmp_path / "film")
    read = dicom.read(tmp_path / "film")
    assert np.abs(read.image - SHOWN).max() <= 1 and mentions(read.notes[0], "film", "BitsStored", "16")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    "bits, value, filled",
    [(16, 0, 0), (16, 65535, 65535), (16, -32768, 32768), (12, -32768, 32768), (12, 4095, 4095), (12, 65535, 65535)],
)
def test_padding_is_black_and_takes_no_grey_range(tmp_path, photometric, bits, value, filled):
    film = FILM + (20000 if bits == 16 else 300)
    film[:5] = filled
    kind = dict(PixelPaddingValue=int(value).to_bytes(2, "little", signed=value < 0), BitsStored=bytes([bits, 0]))
    image = dicom.read(write_raw(tmp_path / "film", film, photometric, **kind)).image
    assert (image[:5] == 0).all() and image[5:].min() == 0 and image[5:].max() == 65535


def test_padding_may_be_a_range_and_a_film_of_padding_alone_is_read(tmp_path):
    film = FILM + 1000
    film[:5] = np.arange(30)
    ends = dict(PixelPaddingValue=(0).to_bytes(2, "little"), PixelPaddingRangeLimit=(40).to_bytes(2, "little"))
    image = dicom.read(write_raw(tmp_path / "film", film, **ends)).image
    assert (image[:5] == 0).all() and image[5:].min() == 0 and image[5:].max() == 65535
    assert not dicom.read(write_raw(tmp_path / "film", film * 0, **ends)).image.any()


def test_three_equal_channels_and_a_palette_are_a_grey_film(tmp_path):
    grey = FILM // 16
    shown = (grey / grey.max() * 65535).round()
    rgb = np.stack([grey] * 3, -1)
    assert np.abs(dicom.read(write_colour(tmp_path / "a", rgb, "RGB")).image - shown).max() <= 1
    ramp = (np.arange(256) * 257).astype("<u2").tobytes()
    tables = {}
    for colour in ("Red", "Green", "Blue"):
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = ("US", [256, 0, 16])
        tables[f"{colour}PaletteColorLookupTableData"] = ("OW", ramp)
    assert np.abs(dicom.read(write_colour(tmp_path / "b", grey, "PALETTE COLOR", **tables)).image - shown).max() <= 1
    rgb[..., 0] = 0
    with refuses("c", "grey", "RGB"):
        dicom.read(write_colour(tmp_path / "c", rgb, "RGB"))


def test_the_spacing_of_a_scanned_film_is_taken_with_a_note(tmp_path):
    scanned = dicom.read(write_dicom(tmp_path / "film", FILM, NominalScannedPixelSpacing=[0.2, 0.2]))
    assert scanned.spacing == 0.2 and mentions(scanned.notes[0], "film", "NominalScannedPixelSpacing", "scanned film")
    spacings = dict(PixelSpacing=[0, 0], ImagerPixelSpacing=[0.15, 0.15], NominalScannedPixelSpacing=[0.2, 0.2])
    other = dicom.read(write_dicom(tmp_path / "film", FILM, **spacings))
    assert other.spacing == 0.15 and mentions(other.notes[0], "PixelSpacing", "ignored")


@pytest.mark.parametrize("syntax", ["JPEGBaseline8Bit", "JPEGLosslessSV1", "JPEGLSLossless", "JPEG2000Lossless"])
def test_compressed_films_are_read_or_the_message_says_what_to_install(tmp_path, syntax):
    content, deep = io.BytesIO(), syntax == "JPEG2000Lossless"
    grey = Image.fromarray(FILM.astype(np.uint16) if deep else (FILM // 16).astype(np.uint8))
    grey.save(content, "JPEG2000" if deep else "JPEG", **({"num_resolutions": 1} if deep else {"quality": 95}))
    uid = getattr(pydicom.uid, syntax)  # the decoders follow the content: a plain JPEG passes for all of these
    file = write_compressed(tmp_path / "film", uid, content.getvalue(), 16 if deep else 8)
    if pydicom.pixels.get_decoder(uid).is_available:
        assert np.corrcoef(dicom.read(file).image.ravel(), FILM.ravel())[0, 1] > 0.99
    else:
        with refuses("film", "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"):
            dicom.read(file)


def test_what_holds_no_single_image_is_named(tmp_path):
    data = pydicom.dcmread(write_dicom(tmp_path / "many", FILM))
    data.Rows, data.NumberOfFrames = 10, 2
    data.save_as(tmp_path / "many")
    with refuses("many", "2 frames"):
        dicom.read(tmp_path / "many")
    data.Rows, data.Columns, data.NumberOfFrames = 60000, 60000, 1
    data.save_as(tmp_path / "large")
    data.Rows, data.DirectoryRecordSequence = 10, []
    data.save_as(tmp_path / "DICOMDIR")
    del data.Rows, data.DirectoryRecordSequence
    data.save_as(tmp_path / "report")
    for function in (read_image, image_size):
        with refuses("large", "60000 x 60000", "178,956,970 px"):
            function(tmp_path / "large")
        with refuses("DICOMDIR", "list of other files"):
            function(tmp_path / "DICOMDIR")
        with refuses("report", "no image"):
            function(tmp_path / "report")
    assert not is_image_file(tmp_path / "DICOMDIR") and is_image_file(tmp_path / "large")


def test_the_size_of_a_film_is_read_from_its_header(tmp_path):
    assert image_size(write_dicom(tmp_path / "film", FILM)) == (30, 20)


@pytest.mark.filterwarnings("ignore")
def test_a_file_without_preamble_is_read_if_its_name_says_that_it_is_dicom(tmp_path):
    file = write_dicom(tmp_path / "film.dcm", FILM, PixelSpacing=[0.1, 0.1])
    whole = dicom.read(file)
    data = pydicom.dcmread(file)
    data.preamble, data.file_meta = None, pydicom.dataset.FileMetaDataset()
    pydicom.dcmwrite(file, data, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert file.read_bytes()[128:132] != b"DICM"
    assert np.array_equal(dicom.read(file).image, whole.image) and dicom.read(file).spacing == 0.1
    file.write_bytes(b"no DICOM file" * 50)
    with refuses("film.dcm", "DICOM"):
        dicom.read(file)
