"""Solutions to the exercises on your own slides; the chapter takes its stubs from here."""


# %% 9.1
def mpp_of(bar_um, bar_px, shrunk=1):
    """Micrometres a pixel of the original of a picture with a scale bar."""
    # solution
    return bar_um / (bar_px * shrunk)
    # end


# %% 9.2
def patients_table(names):
    """Slides of Camelyon16 with their patients and the official split."""
    # solution
    split = ["test" if name.lower().startswith("test") else "train" for name in names]
    return pd.DataFrame({"slide_id": names, "patient_id": names, "split": split})
    # end


# %% 9.3
def reasons(path):
    """Why each slide of a failures file gave no tiles."""
    # solution
    errors = pd.read_csv(path).set_index("slide_id")["error"]
    return {
        slide_id: "pixel size" if "pixel size" in error else "unreadable"
        for slide_id, error in errors.items()
    }
    # end


# %% 9.4
def wall_hours(tiles, read_rate, embed_rate, workers):
    """Hours to embed tiles that other processes read at the same time."""
    # solution
    return tiles / min(workers * read_rate, embed_rate) / 3600
    # end


# %% 9.5
def choose_near(table, candidates, lonely):
    """The near distance, in tile widths, at which near pairs agree most often."""
    # solution
    agreement = {}
    for near_tiles in candidates:
        distances = near_far_um(table, near_tiles, 30)
        one = diagnose(table, *distances, np.random.default_rng(0))
        if one.no_near <= lonely:
            agreement[near_tiles] = one.near_agreement
    return max(agreement, key=agreement.get)
    # end
