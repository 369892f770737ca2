-- Sends each CT series to the DICOM node "tfcovid" (DicomModalities) once nothing was added to it
-- for StableAge seconds. What `tfcovid watch` sends back is no CT, and so starts nothing.

function OnStableSeries(seriesId, tags, metadata)
   if tags['Modality'] == 'CT' then
      local job = {}
      job['Resources'] = { seriesId }
      job['Asynchronous'] = true
      RestApiPost('/modalities/tfcovid/store', DumpJson(job, true))
   end
end
