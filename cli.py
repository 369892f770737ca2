from tf_covid.cli import main

if __name__ == "__main__":
    main()
