# pROC's answers to the cases of proc.py: Rscript --vanilla proc.R CASES.csv ANSWERS.csv
#
# CASES.csv has the columns case, label (0 or 1), first and second: the scores of two models for the
# same images. ANSWERS.csv has a row per case. The versions of R and of pROC are printed.

suppressPackageStartupMessages(library(pROC))

of_one <- function(curve) {
  ends <- ci.auc(curve, method = "delong", conf.level = 0.95)
  c(auc = as.numeric(auc(curve)), variance = var(curve, method = "delong"),
    low = ends[1], high = ends[3])
}

of_case <- function(rows) {
  curves <- lapply(rows[c("first", "second")], function(scores) {
    roc(rows$label, scores, levels = c(0, 1), direction = "<", quiet = TRUE)
  })
  test <- roc.test(curves$first, curves$second, method = "delong", paired = TRUE)
  c(first = of_one(curves$first), second = of_one(curves$second),
    covariance = cov(curves$first, curves$second, method = "delong"),
    z = as.numeric(test$statistic), p = as.numeric(test$p.value))
}

files <- commandArgs(trailingOnly = TRUE)
rows <- read.csv(files[1])
# pROC warns of areas of 1, whose variance is 0; these are among the cases.
answers <- suppressWarnings(lapply(split(rows, rows$case), of_case))
lines <- mapply(function(case, values) paste(c(case, sprintf("%.17g", values)), collapse = ","),
                names(answers), answers)
writeLines(c(paste(c("case", names(answers[[1]])), collapse = ","), lines), files[2])
cat(as.character(getRversion()), as.character(packageVersion("pROC")), "\n")
