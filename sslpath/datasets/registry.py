"""The data sets that sslpath can fetch: address, size, checksum, licence, source.

A checksum of None means that the publisher gives none that we could verify; the loader then
checks the archive's own CRCs instead.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dataset:
    """Where a data set lives and what is known of it."""

    name: str
    url: str
    file: str
    gigabytes: float
    sha256: str | None
    licence: str
    source: str
    content: str


IDC = Dataset(
    name="idc",
    url="http://andrewjanowczyk.com/wp-static/IDC_regular_ps50_idx5.zip",
    file="IDC_regular_ps50_idx5.zip",
    gigabytes=1.6,
    sha256=None,
    licence="see the publisher's page; redistributed by others as CC0 (not verified by us)",
    source="Cruz-Roa et al. 2014, doi:10.1117/12.2043872; Janowczyk and Madabhushi 2016, "
    "doi:10.4103/2153-3539.186902",
    content="277,524 labelled 50 x 50 px tiles (about 200 um) of breast H&E, 279 patients",
)

CAMELYON16 = Dataset(
    name="camelyon16",
    url="https://camelyon-dataset.s3.us-west-2.amazonaws.com",
    file="CAMELYON16/",
    gigabytes=700.0,
    sha256=None,
    licence="CC0, says the publisher",
    source="Ehteshami Bejnordi et al. 2017, doi:10.1001/jama.2017.14585",
    content="399 slides of sentinel lymph nodes, 399 patients, tumour outlined",
)

DATASETS = {one.name: one for one in (IDC, CAMELYON16)}
