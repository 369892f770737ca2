"""`python -m tf_covid.cli`: the same as the installed `tfcovid`."""

from tf_covid.cli import main

if __name__ == "__main__":
    main()
